/** Whether a URL has a user or password in it, where others can read it: on the command line, in status and logs. */
export function hasLogin(url: string): boolean {
  if (!URL.canParse(url)) return false;
  const { username, password } = new URL(url);
  return username !== "" || password !== "";
}
