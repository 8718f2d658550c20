/**
 * What the pings of a session carry where an arbiter decides who serves: the primary's clock, and the secondary's promise
 * not to take over. Only an open session has pings, so both are of a peer that has proved itself.
 */
export type Pulse =
  | {
      readonly of: "Primary";
      /** A ping is sent at least this often. */
      readonly everyMs: number;
      /** The clock that the next ping carries. */
      readonly beat: () => number;
      /** The secondary has heard the ping of that clock, and promised from then on for `promiseMs`. */
      readonly heard: (at: number, promiseMs: number) => void;
    }
  | {
      readonly of: "Secondary";
      /** A ping was heard: for how long this side will not take over by itself from now on. */
      readonly promise: () => number;
    };
