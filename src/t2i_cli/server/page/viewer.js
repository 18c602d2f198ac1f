// One picture in full size, and what can be done with it.

const EXTENSIONS = { png: "png", jpeg: "jpg", webp: "webp" };

const $ = (id) => document.getElementById(id);
const dialog = $("viewer");
const FACTS = JSON.parse($("facts").dataset.names);

/** `focus(picture)` brings the focus back to its tile, `again(picture)` takes its settings. */
export class Viewer {
  constructor(album, { focus, again }) {
    this.album = album;
    $("previous").addEventListener("click", () => this.#turn(-1));
    $("next").addEventListener("click", () => this.#turn(1));
    $("close").addEventListener("click", () => dialog.close());
    $("again").addEventListener("click", () => dialog.close("again"));
    $("zoom").addEventListener("click", () => this.#zoom($("zoom").ariaPressed !== "true"));
    $("copy-seed").addEventListener("click", () => this.#copy("Seed", this.picture.request.seed));
    $("copy-settings").addEventListener("click", () =>
      this.#copy("Settings", JSON.stringify(settings(this.picture.request))),
    );
    $("remove").addEventListener("click", () => this.#remove());
    dialog.addEventListener("close", () => {
      const next = dialog.returnValue === "again" ? again : focus;
      next(this.picture);
    });
    dialog.addEventListener("keydown", (event) => {
      if (event.target === $("stage")) return; // its arrows scroll
      if (event.key === "ArrowLeft") this.#turn(-1);
      if (event.key === "ArrowRight") this.#turn(1);
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
    // More than four screen pixels for one of the image's only blur it.
    image.style.maxWidth = `${picture.width * 4}px`;
    image.style.maxHeight = `${picture.height * 4}px`;
    $("shown-prompt").textContent = request.prompt;
    const facts = Object.entries(FACTS).map(([name, label]) => [label, request[name]]);
    facts.push(["Size", `${picture.width} × ${picture.height}`]);
    facts.push(["Time", `${picture.seconds.toFixed(1)} s`]);
    $("facts").replaceChildren(
      ...facts.filter(([, value]) => value !== null && value !== "").flatMap(row),
    );
    $("download").href = url;
    $("download").download = fileName(picture);
    $("deed").textContent = "";
    const place = this.album.pictures.indexOf(picture);
    $("previous").disabled = place <= 0;
    $("next").disabled = place >= this.album.pictures.length - 1;
  }

  #turn(by) {
    const picture = this.album.pictures[this.album.pictures.indexOf(this.picture) + by];
    if (!picture) return;
    const used = document.activeElement;
    this.#show(picture);
    if (used.disabled) $("close").focus(); // it would lose the focus
  }

  #zoom(actual) {
    $("zoom").ariaPressed = String(actual);
    dialog.classList.toggle("actual", actual);
    $("stage").tabIndex = actual ? 0 : -1;
  }

  #remove() {
    const { pictures } = this.album;
    const place = pictures.indexOf(this.picture);
    const beside = pictures[place + 1] ?? pictures[place - 1];
    this.album.remove(this.picture);
    if (beside) this.#show(beside);
    else dialog.close();
  }

  async #copy(what, text) {
    const done = await copied(String(text));
    $("deed").textContent = done ? `${what} copied.` : "The browser does not let the page copy.";
  }
}

/** What was asked for, as a line of a prompts file for `t2i batch` has it. */
function settings(request) {
  return Object.fromEntries(Object.entries(request).filter(([, value]) => value !== null));
}

function row([label, value]) {
  const term = document.createElement("dt");
  const fact = document.createElement("dd");
  term.textContent = label;
  fact.textContent = value;
  return [term, fact];
}

function fileName({ request, format }) {
  const words = request.prompt.toLowerCase().replace(/[^\p{L}\p{N}]+/gu, "-");
  const slug = words.slice(0, 40).replace(/^-|-$/g, "") || "image";
  return `${slug}-${request.seed}.${EXTENSIONS[format]}`;
}

/** Away from localhost, plain HTTP has no clipboard: a selection is copied there. */
async function copied(text) {
  if (navigator.clipboard) return navigator.clipboard.writeText(text).then(() => true, () => false);
  const carrier = document.createElement("textarea");
  carrier.value = text;
  carrier.className = "unseen";
  const before = document.activeElement;
  dialog.append(carrier);
  carrier.select();
  const done = document.execCommand("copy");
  carrier.remove();
  before.focus();
  return done;
}
