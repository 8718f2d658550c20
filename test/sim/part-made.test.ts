import { describe, expect, it } from "vitest";
import { present } from "../support/present.ts";
import { imagePath, type PairMember } from "./pair.ts";
import { ScriptedPair } from "./scripted-pair.ts";

const COMMAND = { timeoutMs: 60_000 } as const;

/** A secondary of two disks makes the image of the first one itself; that of the second one was there. */
function withSecondImage(): ScriptedPair {
  const scripted = new ScriptedPair(1, "power", { createImages: true });
  const second = present(scripted.disks[1]);
  scripted.pair.secondary.host.disk.addFile(imagePath(second), second.sizeBytes);
  return scripted;
}

/** What a client gets that names no export, and what all names are. */
function exported({ agent }: PairMember): readonly [string | undefined, readonly string[]] {
  const { exports } = present(agent);
  return [exports.find("")?.name, exports.disks().map(({ name }) => name)];
}

describe("a secondary that makes some of its images", () => {
  it("exports no other disk under the empty name than after a restart", async () => {
    const scripted = withSecondImage();
    const { primary, secondary } = scripted.pair;
    expect(await scripted.do("the start", () => secondary.start())).toBe(true);
    expect(exported(secondary)).toEqual([undefined, ["vdb"]]);
    await scripted.do("the start of the primary", async () => {
      await primary.start();
      await scripted.wait("committed");
    });
    expect(exported(secondary)).toEqual(["vda", ["vda", "vdb"]]);
    secondary.host.crash("process");
    secondary.host.restart();
    await scripted.do("the restart", () => secondary.start());
    expect(exported(secondary)).toEqual(["vda", ["vda", "vdb"]]);
  });

  it.each([true, false])(
    "is not promoted by force before all are made, dryRun %s, and starts again",
    async (dryRun) => {
      const scripted = withSecondImage();
      const { secondary } = scripted.pair;
      await scripted.do("the start", () => secondary.start());
      const failover = { force: true, dryRun, discardActive: false, ...COMMAND };
      const error = await scripted.do("the failover", async () =>
        present(secondary.agent)
          .failover(failover, new AbortController().signal)
          .catch((reason: unknown) => reason),
      );
      expect(error).toMatchObject({ code: "image-missing", message: expect.stringContaining("disk vda") as string });
      secondary.host.crash("process");
      secondary.host.restart();
      expect(await scripted.do("the restart", () => secondary.start())).toBe(true);
      expect(secondary.role).toBe("Secondary");
    },
  );
});
