/** What an event belongs to: with the owner dead it never happens, with the owner frozen it waits. */
export interface EventOwner {
  readonly alive: boolean;
  readonly frozen: boolean;
  /** Keeps an event that came due while the owner was frozen. */
  hold(event: ScheduledEvent): void;
}

/** Something that will happen at a moment of virtual time. */
export class ScheduledEvent {
  /** Moved only by the world, while the event is not in the queue. */
  timeMs: number;
  /** Random: events of one moment happen in any order. */
  readonly tie: number;
  readonly sequence: number;
  readonly owner: EventOwner | undefined;
  callback: (() => void) | undefined;

  constructor(timeMs: number, tie: number, sequence: number, owner: EventOwner | undefined, callback: () => void) {
    this.timeMs = timeMs;
    this.tie = tie;
    this.sequence = sequence;
    this.owner = owner;
    this.callback = callback;
  }

  cancel(): void {
    this.callback = undefined;
  }
}

/** A binary heap of events, ordered by time, then tie, then sequence. Cancelled events stay until they come up. */
export class EventQueue {
  readonly #heap: ScheduledEvent[] = [];

  get length(): number {
    return this.#heap.length;
  }

  peek(): ScheduledEvent | undefined {
    return this.#heap[0];
  }

  push(event: ScheduledEvent): void {
    const heap = this.#heap;
    let index = heap.length;
    heap.push(event);
    while (index > 0) {
      const parentIndex = (index - 1) >> 1;
      const parent = heap[parentIndex];
      if (parent === undefined || !precedes(event, parent)) break;
      heap[index] = parent;
      index = parentIndex;
    }
    heap[index] = event;
  }

  pop(): ScheduledEvent | undefined {
    const heap = this.#heap;
    const first = heap[0];
    const last = heap.pop();
    if (first === undefined || last === undefined || heap.length === 0) return first;
    let index = 0;
    for (;;) {
      let childIndex = 2 * index + 1;
      let child = heap[childIndex];
      if (child === undefined) break;
      const right = heap[childIndex + 1];
      if (right !== undefined && precedes(right, child)) {
        child = right;
        childIndex++;
      }
      if (!precedes(child, last)) break;
      heap[index] = child;
      index = childIndex;
    }
    heap[index] = last;
    return first;
  }
}

function precedes(left: ScheduledEvent, right: ScheduledEvent): boolean {
  if (left.timeMs !== right.timeMs) return left.timeMs < right.timeMs;
  if (left.tie !== right.tie) return left.tie < right.tie;
  return left.sequence < right.sequence;
}
