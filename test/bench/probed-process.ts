/** Runs inside the process that is probed, before its own program: see event-loop-probe.ts. */
import { EventLoopDelay } from "../../shared/host/event-loop-delay.ts";
import { NodeClock } from "../../shared/host/node-clock.ts";

let delay: EventLoopDelay | undefined;
process.on("message", (ask) => {
  if (delay !== undefined && ask === "end") process.send?.(delay.getFigures());
  delay?.stop();
  delay = undefined;
  if (ask === "begin") {
    delay = new EventLoopDelay(new NodeClock());
    delay.start(() => undefined);
  }
});
process.channel?.unref();
