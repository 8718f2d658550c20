/**
 * The status page: an agent's state as its control API tells it, live, with the few orders that an operator gives in a hurry.
 *
 * It asks for the status every second, and at once when an event has come; everything that it shows is in one answer. A page
 * that nobody sees does not ask. When the agent does not answer, what was shown last stays, and says of when it is.
 */
import type { AgentEvent, Status } from "../proto/status.ts";
import { describeFailover } from "../cli/describe-failover.ts";
import { formatDuration } from "../cli/quantities.ts";
import { VitalSigns } from "../shared/control/vital-signs.ts";
import { AgentApi, asAgentFault, type Snapshot } from "./agent-api.ts";
import { CopiesSection } from "./copies-section.ts";
import { DisksSection } from "./disks-section.ts";
import { element, setClass, setText } from "./element.ts";
import { EventsSection } from "./events-section.ts";
import { FailoverDialog } from "./failover-dialog.ts";
import { JobsSection } from "./jobs-section.ts";
import { Notices } from "./notices.ts";
import { PairSection } from "./pair-section.ts";
import { PLOTTED_MS, PlotsSection } from "./plots-section.ts";
import { SignIn } from "./sign-in.ts";
import { SummarySection } from "./summary-section.ts";

const REFRESH_MS = 1000;
/** A burst of events costs one request. */
const REFRESH_MIN_MS = 250;
const RETRY_MS = 2000;
const TOKEN_KEY = "colobus-control-token";

class StatusPage {
  readonly #api = new AgentApi();
  readonly #vitals = new VitalSigns(PLOTTED_MS);
  readonly #notices = new Notices();
  readonly #summary = new SummarySection({
    checkpoint: () => this.#checkpoint(),
    failover: () => this.#openFailover(),
  });
  readonly #pair = new PairSection();
  readonly #plots = new PlotsSection();
  readonly #disks = new DisksSection();
  readonly #copies = new CopiesSection();
  readonly #jobs = new JobsSection((id, verb) => void this.#job(id, verb));
  readonly #events = new EventsSection();
  readonly #signIn = new SignIn((token) => this.#enter(token));
  readonly #dialog: FailoverDialog;
  readonly #vm = element("h1", {}, "Status");
  readonly #what = element("p", { class: "what" });
  readonly #live = element("p", { class: "live" });
  readonly #main = element("main", { id: "main", tabindex: "-1" });
  #status: Status | undefined;
  #lastSequence = 0;
  #agentAheadMs = -Infinity;
  #wake: (() => void) | undefined;
  /** Whether something has happened that the last question came too early for. */
  #hasNews = false;
  #isFollowing = false;
  /** Whether the token is being asked for. */
  #isShut = false;

  constructor() {
    this.#dialog = new FailoverDialog(this.#api, (answer) => {
      this.#notices.done(`This side is ${describeFailover(answer).join("; ")}`);
      scrollTo(0, 0);
      this.#main.focus({ preventScroll: true });
    });
    const header = element(
      "header",
      {},
      element("p", { class: "brand" }, "Colobus"),
      element("div", { class: "who" }, this.#vm, this.#what),
      this.#live,
    );
    const skip = element("a", { class: "skip", href: "#main" }, "Skip to the VM's state");
    document.body.replaceChildren(skip, header, this.#main, this.#dialog.root);
    document.addEventListener("visibilitychange", () => this.#wake?.());
  }

  async start(): Promise<void> {
    const token = sessionStorage.getItem(TOKEN_KEY);
    if (token !== null) this.#api.token = token;
    for (;;) {
      try {
        if (this.#api.token === undefined && (await this.#api.wantsToken())) this.#shut("");
        else this.#open();
        break;
      } catch (error) {
        this.#showSilence(asAgentFault(error).message);
        await this.#pause(RETRY_MS);
      }
    }
    await this.#refreshForEver();
  }

  async #refreshForEver(): Promise<never> {
    for (;;) {
      await this.#mayAsk();
      let restMs = REFRESH_MS;
      this.#hasNews = false;
      try {
        this.#show(await this.#api.snapshot());
        if (!this.#isFollowing) void this.#follow();
      } catch (error) {
        const fault = asAgentFault(error);
        if (fault.isForWantOfToken) this.#shut(`Refused: ${fault.message}.`);
        else this.#showSilence(fault.message);
        restMs = RETRY_MS;
      }
      await pause(REFRESH_MIN_MS);
      if (!this.#hasNews) await this.#pause(restMs - REFRESH_MIN_MS);
    }
  }

  /** Resolves when somebody looks at the page, and the agent may be asked. */
  async #mayAsk(): Promise<void> {
    while (document.hidden || this.#isShut) await this.#pause(undefined);
  }

  /** Resolves after this time, or when something has happened. */
  #pause(ms: number | undefined): Promise<void> {
    return new Promise((resolve) => {
      const timer = ms === undefined ? undefined : setTimeout(resolve, ms);
      this.#wake = () => {
        clearTimeout(timer);
        resolve();
      };
    });
  }

  async #follow(): Promise<void> {
    this.#isFollowing = true;
    try {
      await this.#api.follow(this.#lastSequence, (event) => this.#hear(event));
    } catch {
      // The next question for the status tells what is wrong, and follows again.
    }
    this.#isFollowing = false;
  }

  #hear(event: AgentEvent): void {
    this.#lastSequence = event.sequence;
    this.#vitals.hear(event);
    this.#events.add(event);
    this.#hasNews = true;
    this.#wake?.();
  }

  #show({ status, metrics, agentMs }: Snapshot): void {
    const nowMs = Date.now();
    // What the answer tells is cut to the second: the largest difference is the closest.
    if (agentMs !== undefined) this.#agentAheadMs = Math.max(this.#agentAheadMs, agentMs - nowMs);
    this.#vitals.observe(status, metrics, nowMs);
    this.#tellChanges(status);
    this.#status = status;
    const { protection } = status;
    document.title = `${protection.state === "Protected" ? "✓" : "✗"} ${status.vm}, ${status.role} – Colobus`;
    setText(this.#vm, status.vm);
    setText(this.#what, `${status.role}, mode ${status.mode}`);
    setText(this.#live, "live");
    setClass(this.#live, "live good");
    this.#main.classList.remove("stale");
    this.#summary.update(status);
    this.#pair.update(status);
    this.#plots.update(status, this.#vitals, nowMs, Math.max(this.#agentAheadMs, -nowMs));
    this.#disks.update(status);
    this.#copies.update(status);
    this.#jobs.update(status);
  }

  /** The role and the protection are read out when they change; figures are not. */
  #tellChanges({ role, protection, vm }: Status): void {
    const before = this.#status;
    if (before === undefined) return;
    if (before.role === role && before.protection.state === protection.state) return;
    const state = protection.state === "Protected" ? "protected" : `not protected: ${protection.reason ?? ""}`;
    this.#notices.tell(`${vm} is ${role}, ${state}. ${protection.nextAction}`);
  }

  #showSilence(message: string): void {
    setText(this.#live, this.#status === undefined ? message : `${message} Shown is what it said last.`);
    setClass(this.#live, "live bad");
    this.#main.classList.add("stale");
  }

  /** Has the token asked for. */
  #shut(reason: string): void {
    sessionStorage.removeItem(TOKEN_KEY);
    this.#api.token = undefined;
    this.#isShut = true;
    setText(this.#live, "");
    this.#main.replaceChildren(this.#signIn.root);
    this.#signIn.show(reason);
  }

  #enter(token: string): void {
    sessionStorage.setItem(TOKEN_KEY, token);
    this.#api.token = token;
    this.#open();
  }

  #open(): void {
    this.#isShut = false;
    const parts = [this.#summary, this.#pair, this.#plots, this.#jobs, this.#disks, this.#copies, this.#events];
    this.#main.replaceChildren(this.#notices.root, ...parts.map(({ root }) => root));
    this.#wake?.();
  }

  async #checkpoint(): Promise<void> {
    try {
      const { epoch, prepareMs, commitMs } = await this.#api.checkpoint();
      this.#notices.done(`Checkpoint ${epoch} is committed, after ${formatDuration(prepareMs + (commitMs ?? 0))}`);
    } catch (error) {
      this.#notices.failed("No checkpoint", asAgentFault(error));
    }
  }

  async #job(id: string, verb: "pause" | "resume"): Promise<void> {
    try {
      const { state } = await this.#api.job(id, verb);
      this.#notices.done(`Job ${id} is ${state}`);
      this.#wake?.();
    } catch (error) {
      this.#notices.failed(`No ${verb} of job ${id}`, asAgentFault(error));
    }
  }

  #openFailover(): void {
    if (this.#status !== undefined) this.#dialog.show(this.#status);
  }
}

function pause(ms: number): Promise<void> {
  return new Promise((resolve) => {
    setTimeout(resolve, ms);
  });
}

await new StatusPage().start();
