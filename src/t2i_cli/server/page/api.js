// What the page says to the server: t2i's own dialect, as docs/serve.md describes it.

const KEY = "t2i-key";

/** An error as the server tells it: a sentence, what to do next, and the field at fault. */
export class Problem extends Error {
  constructor({ message, hint = "", field = null }) {
    super(message);
    this.hint = hint ?? "";
    this.field = field;
  }
}

/**
 * Fetch a path with the key, where there is one.
 * `askKey(refused)` resolves to a key, or to null; it is asked as long as the server answers 401.
 */
export async function call(path, options, askKey) {
  for (;;) {
    const key = sessionStorage.getItem(KEY);
    const headers = { "Content-Type": "application/json" };
    if (key) headers.Authorization = `Bearer ${key}`;
    const response = await reach(() => fetch(path, { ...options, headers }));
    if (response.ok) return response;
    const problem = await told(response);
    if (response.status !== 401) throw problem;
    const given = await askKey(key !== null);
    if (!given) {
      throw new Problem({ message: problem.message, hint: "Generate asks for it again." });
    }
    sessionStorage.setItem(KEY, given);
  }
}

/** The server-sent events of an answer, each as its name and its data, read from JSON. */
export async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let begun = "";
  let name = "";
  let data = "";
  for (;;) {
    const { done, value } = await reach(() => reader.read());
    if (done) return;
    const lines = value.split("\n");
    lines[0] = begun + lines[0];
    begun = lines.pop();
    for (const line of lines.map((text) => text.replace(/\r$/, ""))) {
      if (line.startsWith("event:")) name = line.slice(6).trim();
      else if (line.startsWith("data:")) data += `${line.slice(5)}\n`;
      else if (line === "") {
        if (data) yield { name, data: JSON.parse(data) };
        name = data = "";
      }
    }
  }
}

async function reach(work) {
  try {
    return await work();
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem({
      message: "The server does not answer.",
      hint: "See whether t2i serve is still running, then try again.",
    });
  }
}

/** The problem in an answer; a proxy's own error pages are not JSON. */
async function told(response) {
  const body = await response.json().catch(() => null);
  return new Problem(body?.error ?? { message: `The server answered ${response.status}.` });
}
