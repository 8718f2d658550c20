import type { PrimaryRole } from "../primary/primary-role.ts";
import type { ChildAnswer, ChildRequest } from "../proto/control-api.ts";
import { ColobusError } from "../proto/errors.ts";
import { Deadline } from "../shared/host/deadline.ts";
import { parseImageLocation } from "../shared/block/image-location.ts";
import type { AgentOptions } from "./agent-host.ts";
import { assertChildName } from "./child-name.ts";

/** An operator's change of a disk's copies. Errors: `usage`, and those of the change; `timed-out`, and it may still be made. */
export async function changeChild(
  primary: PrimaryRole,
  request: ChildRequest,
  { host: { clock }, assertImageAllowed }: Pick<AgentOptions, "host" | "assertImageAllowed">,
  signal: AbortSignal,
): Promise<ChildAnswer> {
  const { verb, disk, name, image, create, timeoutMs } = request;
  if (verb !== "remove") assertChildName(name);
  if ((image === undefined) !== (verb === "remove")) {
    throw new ColobusError("usage", `a copy to ${verb} is named ${verb === "remove" ? "without" : "with"} its image`);
  }
  if (image !== undefined) {
    parseImageLocation(image);
    assertImageAllowed?.(image);
  }
  const copies = primary.copies.of(disk);
  const deadline = new Deadline(clock, timeoutMs, signal);
  const change = async (): Promise<void> => {
    if (image === undefined) await copies.remove(name);
    else if (verb === "add") await copies.add(name, image, { create });
    else await copies.replace(name, image, { create });
  };
  try {
    await deadline.race(change(), `copy ${name} of disk ${disk} is not changed yet`);
    return { disk, children: copies.describe() };
  } finally {
    deadline.end();
  }
}
