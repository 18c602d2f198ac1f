// The dialog with one image in full size, its settings and actions.

const EXTENSIONS = { png: "png", jpeg: "jpg", webp: "webp" };

const $ = (id) => document.getElementById(id);
const dialog = $("viewer");
const FACTS = JSON.parse($("facts").dataset.names);

/**
 * `focus(picture)` focuses its tile, `reuse(picture)` puts its settings into the form,
 * `remove(picture)` removes it.
 */
export class Viewer {
  constructor(album, { focus, reuse, remove }) {
    this.album = album;
    this.remove = remove;
    $("previous").addEventListener("click", () => this.#move(-1));
    $("next").addEventListener("click", () => this.#move(1));
    $("close").addEventListener("click", () => dialog.close());
    $("again").addEventListener("click", () => dialog.close("again"));
    $("zoom").addEventListener("click", () => this.#zoom($("zoom").ariaPressed !== "true"));
    $("copy-seed").addEventListener("click", () => this.#copy("Seed", this.picture.request.seed));
    $("copy-settings").addEventListener("click", () =>
      this.#copy("Settings", JSON.stringify(settings(this.picture.request))),
    );
    $("remove").addEventListener("click", () => this.#remove());
    dialog.addEventListener("close", () => {
      const next = dialog.returnValue === "again" ? reuse : focus;
      next(this.picture);
    });
    dialog.addEventListener("keydown", (event) => {
      if (event.target === $("stage")) return; // the arrow keys scroll it
      if (event.key === "ArrowLeft") this.#move(-1);
      if (event.key === "ArrowRight") this.#move(1);
    });
  }

  open(picture) {
    this.#show(picture);
    dialog.returnValue = "";
    dialog.showModal();
  }

  #show(picture) {
    const { request, url } = picture;
    const image = $("shown");
    this.picture = picture;
    this.#zoom(false);
    image.src = url;
    image.alt = request.prompt;
    // Enlarge at most 4 times: more only blurs the image.
    image.style.maxWidth = `${picture.width * 4}px`;
    image.style.maxHeight = `${picture.height * 4}px`;
    $("shown-prompt").textContent = request.prompt;
    const facts = Object.entries(FACTS).map(([name, label]) => [label, shown(request[name])]);
    facts.push(["Size", `${picture.width} × ${picture.height}`]);
    facts.push(["Time", `${picture.seconds.toFixed(1)} s`]);
    $("facts").replaceChildren(
      ...facts.filter(([, value]) => value !== null && value !== undefined && value !== "").flatMap(row),
    );
    $("download").href = url;
    $("download").download = fileName(picture);
    $("deed").textContent = "";
    const position = this.album.pictures.indexOf(picture);
    $("previous").disabled = position <= 0;
    $("next").disabled = position >= this.album.pictures.length - 1;
  }

  #move(by) {
    const picture = this.album.pictures[this.album.pictures.indexOf(this.picture) + by];
    if (!picture) return;
    const focused = document.activeElement;
    this.#show(picture);
    if (focused.disabled) $("close").focus(); // a disabled button loses the focus
  }

  #zoom(actual) {
    $("zoom").ariaPressed = String(actual);
    dialog.classList.toggle("actual", actual);
    $("stage").tabIndex = actual ? 0 : -1;
  }

  #remove() {
    const { pictures } = this.album;
    const position = pictures.indexOf(this.picture);
    const neighbour = pictures[position + 1] ?? pictures[position - 1];
    this.remove(this.picture);
    if (!neighbour) return dialog.close();
    this.#show(neighbour);
    $("deed").textContent = "Removed. Close this view to undo it.";
  }

  async #copy(what, text) {
    const done = await copyText(String(text));
    $("deed").textContent = done ? `${what} copied.` : "The browser does not let the page copy.";
  }
}

/** The request's set fields, as in a line of a JSONL prompts file for `t2i batch`. */
function settings(request) {
  return Object.fromEntries(Object.entries(request).filter(([, value]) => value !== null));
}

function row([label, value]) {
  const term = document.createElement("dt");
  const description = document.createElement("dd");
  term.textContent = label;
  description.textContent = value;
  return [term, description];
}

function fileName({ request, format }) {
  const words = request.prompt.toLowerCase().replace(/[^\p{L}\p{N}]+/gu, "-");
  const slug = words.slice(0, 40).replace(/^-|-$/g, "") || "image";
  return `${slug}-${request.seed}.${EXTENSIONS[format]}`;
}

/** Copy text; without the clipboard API, as on plain HTTP, by selecting and execCommand. */
async function copyText(text) {
  if (navigator.clipboard) return navigator.clipboard.writeText(text).then(() => true, () => false);
  const textarea = document.createElement("textarea");
  textarea.value = text;
  textarea.className = "unseen";
  const before = document.activeElement;
  dialog.append(textarea);
  textarea.select();
  const done = document.execCommand("copy");
  textarea.remove();
  before.focus();
  return done;
}

/** A value as text: LoRAs with their weights. */
function shown(value) {
  if (!Array.isArray(value)) return value;
  return value.map(({ source, weight }) => `${source} ${weight}`).join(", ");
}
