/**
 * Keeps the process up until `work` is done. Node ends a process that waits for nothing but timers of a `Clock`, in the middle
 * of what it does and with exit code 13: a command that rests before it tries again has no more than that.
 */
export async function keepRunning<T>(work: Promise<T>): Promise<T> {
  const channel = new MessageChannel();
  channel.port1.ref();
  try {
    return await work;
  } finally {
    channel.port1.close();
  }
}
