import { freePort } from "./agent-pair.ts";
import type { CertificateFiles } from "./certificates.ts";
import { scratchDirectory } from "./scratch.ts";
import { ToolProcess } from "./tool-process.ts";

/** An etcd of one member, with its data in a scratch directory. It is killed when the test has finished. */
export class Etcd {
  readonly url: string;
  readonly #process: ToolProcess;

  private constructor(url: string, process: ToolProcess) {
    this.url = url;
    this.#process = process;
  }

  /** Resolves when it answers. With `tls` only to clients that show a certificate of the same authority. */
  static async start(tls?: CertificateFiles): Promise<Etcd> {
    const url = `${tls === undefined ? "http" : "https"}://127.0.0.1:${await freePort()}`;
    const peerUrl = `http://127.0.0.1:${await freePort()}`;
    const healthUrl = `http://127.0.0.1:${await freePort()}`;
    const security =
      tls === undefined
        ? []
        : [`--cert-file=${tls.cert}`, `--key-file=${tls.key}`, `--trusted-ca-file=${tls.ca}`, "--client-cert-auth"];
    const process = new ToolProcess("etcd", [
      `--data-dir=${scratchDirectory()}`,
      "--logger=zap",
      "--log-outputs=/dev/null",
      "--unsafe-no-fsync",
      "--name=test",
      `--initial-cluster=test=${peerUrl}`,
      `--initial-advertise-peer-urls=${peerUrl}`,
      `--listen-peer-urls=${peerUrl}`,
      `--listen-client-urls=${url}`,
      `--advertise-client-urls=${url}`,
      `--listen-metrics-urls=${healthUrl}`,
      ...security,
    ]);
    while (!(await answers(healthUrl))) {
      await new Promise((resolve) => {
        setTimeout(resolve, 20);
      });
    }
    return new Etcd(url, process);
  }

  async kill(): Promise<void> {
    await this.#process.end("SIGKILL");
  }
}

async function answers(url: string): Promise<boolean> {
  try {
    const response = await fetch(new URL("/health", url));
    return ((await response.json()) as { health?: string }).health === "true";
  } catch {
    return false; // not yet
  }
}
