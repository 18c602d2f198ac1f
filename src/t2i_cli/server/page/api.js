// HTTP calls to the server in the t2i dialect, as docs/serve.md describes it.

import { advice, inWords } from "./advice.js";

const KEY_ITEM = "t2i-key";

/** An error: message, what to do about it, and the invalid field. */
export class Problem extends Error {
  constructor(message, { hint = "", field = null } = {}) {
    super(message);
    this.hint = hint;
    this.field = field;
  }
}

/** The Problem of an error object of the server, with the page's own words on what to do. */
export function serverProblem(error) {
  return new Problem(inWords(error), { hint: advice(error), field: error.field });
}

/**
 * Fetch a path, with the API key if there is one. Throws a Problem.
 * `askKey(refused)` resolves to a key or null; it is called again while the server responds 401.
 */
export async function call(path, options, askKey) {
  for (;;) {
    const key = sessionStorage.getItem(KEY_ITEM);
    const headers = { "Content-Type": "application/json" };
    if (key) headers.Authorization = `Bearer ${key}`;
    const response = await withNetworkErrors(() => fetch(path, { ...options, headers }));
    if (response.ok) return response;
    const problem = await readProblem(response);
    if (response.status !== 401) throw problem;
    const newKey = await askKey(key !== null);
    if (!newKey) {
      throw new Problem(problem.message, { hint: "Generate asks for it again." });
    }
    sessionStorage.setItem(KEY_ITEM, newKey);
  }
}

/** The server-sent events of a response, each with its name and its parsed JSON data. */
export async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let partialLine = "";
  let name = "";
  let data = "";
  for (;;) {
    const { done, value } = await withNetworkErrors(() => reader.read());
    if (done) return;
    const lines = value.split("\n");
    lines[0] = partialLine + lines[0];
    partialLine = lines.pop();
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

async function withNetworkErrors(work) {
  try {
    return await work();
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem("The server does not answer.", {
      hint: "It may have been stopped, or the network is down. Try again in a moment.",
    });
  }
}

/** The Problem in an error response; error pages of proxies are not JSON. */
async function readProblem(response) {
  const body = await response.json().catch(() => null);
  return serverProblem(body?.error ?? { message: `The server answered ${response.status}.` });
}
