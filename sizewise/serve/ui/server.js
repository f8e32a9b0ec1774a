// Questions to the server that sent this page, and to no other.

/** What the server says went wrong. */
export class Refused extends Error {}

async function checked(response) {
  if (response.ok) return response;
  let said = "";
  try {
    said = (await response.json()).error;
  } catch {
    // Not our envelope: the status has to do.
  }
  throw new Refused(typeof said === "string" && said ? said : `the server answered ${response.status}`);
}

async function reached(path, options) {
  try {
    return await fetch(path, { cache: "no-store", ...options });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refused("the server does not answer; is `sizewise serve` still running?");
  }
}

export async function get(path) {
  return (await checked(await reached(path, {}))).json();
}

export async function post(path, body, signal) {
  return (await checked(await send(path, body, signal))).json();
}

function send(path, body, signal) {
  const headers = { "Content-Type": "application/json" };
  return reached(path, { method: "POST", headers, body: JSON.stringify(body), signal });
}

/** The lines of a streamed answer, each as an object, as they come. */
export async function* lines(path, body, signal) {
  const response = await checked(await send(path, body, signal));
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      rest += value ?? "";
      const whole = rest.split("\n");
      rest = done ? "" : whole.pop();
      for (const line of whole) {
        if (line.trim()) yield understood(line);
      }
      if (done) return;
    }
  } finally {
    reader.cancel().catch(() => {}); // already closed: nothing is left to cancel
  }
}

function understood(line) {
  const item = JSON.parse(line);
  if (typeof item.error === "string") throw new Refused(item.error);
  return item;
}
