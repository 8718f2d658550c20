/**
 * The content of a simulated file: a sparse table of 4 KiB pages. A page that is not there is a hole; a page without
 * bytes is allocated, unwritten, and reads as zeroes. Copies share their pages until one side writes.
 *
 * Invariant: bytes of the last page behind the end of the file are zero.
 */
export const PAGE_BYTES = 4096;

interface Page {
  /** The table that may change `bytes` in place. */
  owner: number;
  bytes: Uint8Array | undefined;
}

let ownerCount = 0;

export class PageTable {
  readonly #pages: Map<number, Page>;
  #owner = ++ownerCount;
  #sizeBytes: number;

  constructor(pages: Map<number, Page> = new Map(), sizeBytes = 0) {
    this.#pages = pages;
    this.#sizeBytes = sizeBytes;
  }

  get sizeBytes(): number {
    return this.#sizeBytes;
  }

  /** Pages that occupy storage. */
  get pageCount(): number {
    return this.#pages.size;
  }

  /** A copy that shares all pages with this one for now. */
  clone(): PageTable {
    this.#owner = ++ownerCount;
    return new PageTable(new Map(this.#pages), this.#sizeBytes);
  }

  /** Fills `target`; the range must lie within the file. */
  read(target: Uint8Array, offset: number): void {
    for (let done = 0; done < target.length;) {
      const within = (offset + done) % PAGE_BYTES;
      const length = Math.min(PAGE_BYTES - within, target.length - done);
      const bytes = this.#pages.get(Math.floor((offset + done) / PAGE_BYTES))?.bytes;
      if (bytes === undefined) target.fill(0, done, done + length);
      else target.set(length === PAGE_BYTES ? bytes : bytes.subarray(within, within + length), done);
      done += length;
    }
  }

  /** Writes `source`, growing the file if need be. */
  write(source: Uint8Array, offset: number): void {
    for (let done = 0; done < source.length;) {
      const within = (offset + done) % PAGE_BYTES;
      const length = Math.min(PAGE_BYTES - within, source.length - done);
      const piece = length === source.length ? source : source.subarray(done, done + length);
      this.#writable(Math.floor((offset + done) / PAGE_BYTES)).set(piece, within);
      done += length;
    }
    this.#sizeBytes = Math.max(this.#sizeBytes, offset + source.length);
  }

  /** Makes the range read as zeroes; whole pages are freed, or with `keepAllocated` all of the range becomes allocated. */
  zero(offset: number, length: number, keepAllocated: boolean): void {
    const end = offset + length;
    for (let at = offset; at < end;) {
      const index = Math.floor(at / PAGE_BYTES);
      const pageEnd = Math.min(end, (index + 1) * PAGE_BYTES);
      const page = this.#pages.get(index);
      if (pageEnd - at === PAGE_BYTES) {
        if (keepAllocated) this.#pages.set(index, { owner: this.#owner, bytes: undefined });
        else this.#pages.delete(index);
      } else if (page?.bytes !== undefined) {
        this.#writable(index).fill(0, at % PAGE_BYTES, (at % PAGE_BYTES) + pageEnd - at);
      } else if (page === undefined && keepAllocated) {
        this.#pages.set(index, { owner: this.#owner, bytes: undefined });
      }
      at = pageEnd;
    }
  }

  /** Allocates the pages of the range, and grows the file to its end if need be. */
  allocate(offset: number, length: number): void {
    for (let index = Math.floor(offset / PAGE_BYTES); index * PAGE_BYTES < offset + length; index++) {
      if (!this.#pages.has(index)) this.#pages.set(index, { owner: this.#owner, bytes: undefined });
    }
    this.#sizeBytes = Math.max(this.#sizeBytes, offset + length);
  }

  truncate(sizeBytes: number): void {
    if (sizeBytes < this.#sizeBytes) {
      if (sizeBytes % PAGE_BYTES !== 0) this.zero(sizeBytes, PAGE_BYTES - (sizeBytes % PAGE_BYTES), false);
      const kept = Math.ceil(sizeBytes / PAGE_BYTES);
      for (const index of this.#pages.keys()) if (index >= kept) this.#pages.delete(index);
    }
    this.#sizeBytes = sizeBytes;
  }

  /** Pages of the range that are holes. */
  missing(offset: number, length: number): number {
    let count = 0;
    for (let index = Math.floor(offset / PAGE_BYTES); index * PAGE_BYTES < offset + length; index++) {
      if (!this.#pages.has(index)) count++;
    }
    return count;
  }

  /** How much of [offset, offset+length) can be written when only `pages` more pages may be allocated. */
  fitting(offset: number, length: number, pages: number): number {
    let left = pages;
    for (let index = Math.floor(offset / PAGE_BYTES); index * PAGE_BYTES < offset + length; index++) {
      if (!this.#pages.has(index) && --left < 0) return Math.max(0, index * PAGE_BYTES - offset);
    }
    return length;
  }

  /** As StorageFile. File systems differ in what they say of unwritten pages. */
  nextData(offset: number, unwrittenIsData: boolean): number | undefined {
    for (let at = offset; at < this.#sizeBytes; at = nextPage(at)) {
      if (this.#isData(at, unwrittenIsData)) return at;
    }
    return undefined;
  }

  nextHole(offset: number, unwrittenIsData: boolean): number {
    for (let at = offset; at < this.#sizeBytes; at = nextPage(at)) {
      if (!this.#isData(at, unwrittenIsData)) return at;
    }
    return Math.max(offset, this.#sizeBytes);
  }

  #isData(offset: number, unwrittenIsData: boolean): boolean {
    const page = this.#pages.get(Math.floor(offset / PAGE_BYTES));
    return page !== undefined && (unwrittenIsData || page.bytes !== undefined);
  }

  #writable(index: number): Uint8Array {
    const page = this.#pages.get(index);
    if (page?.bytes !== undefined && page.owner === this.#owner) return page.bytes;
    const bytes = page?.bytes === undefined ? new Uint8Array(PAGE_BYTES) : page.bytes.slice();
    this.#pages.set(index, { owner: this.#owner, bytes });
    return bytes;
  }
}

function nextPage(offset: number): number {
  return (Math.floor(offset / PAGE_BYTES) + 1) * PAGE_BYTES;
}
