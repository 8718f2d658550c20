/** The commands with which an operator, or a hook, talks to agents that run already. */
import type { Command } from "./command.ts";
import { bitmapCommand } from "./commands/bitmap.ts";
import { checkpointCommand, commitCommand, discardCommand } from "./commands/checkpoint.ts";
import { childCommand } from "./commands/child.ts";
import { completionCommand } from "./commands/completion.ts";
import { configCommand } from "./commands/config.ts";
import { doctorCommand } from "./commands/doctor.ts";
import { eventsCommand } from "./commands/events.ts";
import { failoverCommand } from "./commands/failover.ts";
import { forgetCommand } from "./commands/forget.ts";
import { jobCommand, jobsCommand } from "./commands/jobs.ts";
import { listCommand } from "./commands/list.ts";
import { connectCommand, rejoinCommand, startAloneCommand, switchoverCommand } from "./commands/roles.ts";
import { mirrorCommand } from "./commands/mirror.ts";
import { resizeCommand } from "./commands/resize.ts";
import { resyncCommand, rollbackCommand } from "./commands/recover.ts";
import { metricsCommand } from "./commands/metrics.ts";
import { protectCommand } from "./commands/protect.ts";
import { statusCommand } from "./commands/status.ts";
import { verifyCommand } from "./commands/verify.ts";
import { vmstateCommand } from "./commands/vmstate.ts";
import { supportBundleCommand } from "./commands/support-bundle.ts";
import { waitCommand } from "./commands/wait.ts";

/** In the order in which help lists them. */
export const OPERATOR_COMMANDS: readonly Command[] = [
  listCommand,
  statusCommand,
  eventsCommand,
  metricsCommand,
  jobsCommand,
  jobCommand,
  checkpointCommand,
  commitCommand,
  discardCommand,
  protectCommand,
  vmstateCommand,
  failoverCommand,
  switchoverCommand,
  rejoinCommand,
  connectCommand,
  forgetCommand,
  startAloneCommand,
  resyncCommand,
  mirrorCommand,
  resizeCommand,
  rollbackCommand,
  verifyCommand,
  childCommand,
  bitmapCommand,
  waitCommand,
  configCommand,
  doctorCommand,
  supportBundleCommand,
  completionCommand,
];
