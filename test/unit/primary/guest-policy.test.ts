import { describe, expect, it } from "vitest";
import { GuestPolicy } from "../../../primary/guest-policy.ts";
import { ColobusError } from "../../../proto/errors.ts";
import { StateFile } from "../../../shared/journal/state-file.ts";
import { MemoryStorage } from "../../support/memory-storage.ts";
import { SilentLog } from "../../support/silent-log.ts";
import { stateRecord } from "../../support/state-records.ts";

const DIFFERENCE = new ColobusError("quorum-failure", "copies local and b differ", "Find out which is right.");
const WORDS =
  "Writes wait, since copies local and b differ. Find out which is right. `colobus start-alone` lets writes go on.";

/** The guests of a new primary, and the events of them; where it may be superseded, they are held to begin with. */
async function newGuests(mayBeSuperseded = false): Promise<{ guests: GuestPolicy; told: string[] }> {
  const storage = new MemoryStorage();
  storage.makeDirectory("/state");
  const told: string[] = [];
  const guests = new GuestPolicy({
    state: await StateFile.create(storage, "/state", stateRecord({ role: "Primary" })),
    mayHaveHadPeer: false,
    mayBeSuperseded,
    splitBrain: () => undefined,
    log: new SilentLog(),
    emit: (type, { reason }) => void told.push(typeof reason === "string" ? `${type}: ${reason}` : type),
  });
  return { guests, told };
}

describe("guests that are frozen since copies differ", () => {
  it("are told of as such, once", async () => {
    const { guests, told } = await newGuests();
    guests.freeze(DIFFERENCE);
    guests.freeze(new ColobusError("quorum-failure", "another one", "."));
    expect(guests.describeHold()).toBe(WORDS);
    expect(told).toEqual([`guests-held: ${WORDS}`]);
  });

  it("do not go on when the secondary is back, and do by `start-alone`", async () => {
    const { guests, told } = await newGuests();
    guests.freeze(DIFFERENCE);
    guests.release();
    expect(guests).toMatchObject({ areWaiting: true, areWaitingForOperator: true });
    expect(guests.startAlone()).toBe(true);
    expect(guests).toMatchObject({ areWaiting: false, areWaitingForOperator: false });
    expect(told).toEqual([`guests-held: ${WORDS}`, "guests-released"]);
    guests.freeze();
    guests.release();
    expect(guests.areWaiting).toBe(false);
  });

  it("are held for what comes first, and read when that is over", async () => {
    const { guests, told } = await newGuests(true);
    guests.freeze(DIFFERENCE);
    expect(guests).toMatchObject({ isHeld: true, areWaitingForOperator: false });
    expect(guests.describeHold()).toContain("has not met its peer");
    guests.release();
    expect(guests.gate.state).toBe("frozen");
    expect(told.at(-1)).toBe(`guests-held: ${WORDS}`);
  });
});
