// A chat over the server's own interface. Texts go into the page as text alone, never as HTML.

const PARTS = ["queue", "moderation", "memory", "model", "api"];
const ABOUT = {
  queue: "waiting for a slot", moderation: "moderation", memory: "memory", model: "model", api: "interface",
};
const HUES = 6;
const MIXED = " mixture"; // no persona's name begins with a space
const KEY = "abi.key";

const byId = (id) => document.getElementById(id);
const [scroller, turnsBox, question, who, send, panel, trouble] =
  ["scroll", "turns", "question", "who", "send", "panel", "trouble"].map(byId);
const personas = []; // {name, about, sampling, share}, shares from 0 to 1
const turns = []; // {question, said, box, answer}
let running = null; // the AbortController of the answer that comes
let wanted = ""; // the persona that was chosen, or MIXED

// ---- making elements ------------------------------------------------------------------------------------------------

function make(tag, settings = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(settings)) {
    if (name === "class") made.className = value;
    else if (name === "hue") made.style.setProperty("--hue", value);
    else if (name in made) made[name] = value;
    else made.setAttribute(name, value);
  }
  made.append(...children.filter((child) => child !== null));
  return made;
}

const button = (label, onclick) => make("button", { type: "button", class: "quiet", onclick }, label);
const percent = (share) => `${Math.round(100 * share)} %`;
const hue = (name) => {
  const at = personas.findIndex((persona) => persona.name === name);
  return at < 0 ? "var(--edge)" : `var(--hue-${at % HUES})`;
};

function bar(parts) { // [[share, hue], ...]
  return parts.filter(([share]) => share > 0).map(([share, color]) => {
    const part = make("span", { hue: color });
    part.style.flexGrow = String(share);
    return part;
  });
}

let speaking = 0;
function say(text) { // to a screen reader: once, not again to whoever walks over the page
  byId("status").textContent = text;
  clearTimeout(speaking);
  speaking = setTimeout(() => byId("status").replaceChildren(), 3000);
}

function written(mixture) {
  const heard = Object.entries(mixture).sort((a, b) => b[1] - a[1]);
  if (heard.length < 2) return heard.length ? heard[0][0] : "base";
  return heard.map(([name, share]) => `${name} ${percent(share)}`).join(", ");
}

// ---- the server -----------------------------------------------------------------------------------------------------

class Refused extends Error {
  constructor(message, status, wait) {
    super(message);
    Object.assign(this, { status, wait });
  }
}

async function call(path, settings = {}) {
  const key = byId("key").value.trim();
  const headers = { ...(key && { authorization: `Bearer ${key}` }), ...(settings.body && { "content-type": "application/json" }) };
  let answer;
  try {
    answer = await fetch(path, { ...settings, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refused("The server cannot be reached.", 0);
  }
  if (answer.ok) return answer;
  const told = await answer.json().catch(() => null);
  const message = told?.error?.message ?? `The server answered with status ${answer.status}.`;
  throw new Refused(message, answer.status, Number(answer.headers.get("retry-after")) || 0);
}

async function* events(answer) {
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read().catch((error) => {
      if (error.name === "AbortError") throw error;
      return { done: true };
    });
    if (done) throw new Refused("The connection ended before the answer did.", 0);
    const whole = (rest + value).split("\n\n");
    rest = whole.pop();
    for (const event of whole) {
      if (!event.startsWith("data:")) continue;
      const data = event.slice(5).trim();
      if (data === "[DONE]") return;
      const told = JSON.parse(data);
      if (told.error) throw new Refused(told.error.message, 0);
      yield told;
    }
  }
}

async function load() {
  const models = await (await call("v1/models")).json();
  const told = await call("v1/abi/personas").then((answer) => answer.json(), () => ({ data: [] }));
  const kept = await call("v1/wdbx/collections").then((answer) => answer.json(), () => ({ data: [] }));
  const about = new Map(told.data.map((each) => [each.name, each]));
  const names = models.data.map((model) => model.id);
  const spoken = names.filter((name) => name !== "base");
  personas.splice(0, Infinity, ...spoken.map((name) => {
    const { title, description, sampling } = about.get(name) ?? {};
    return { name, about: title || description || "", sampling: sampling ?? {}, share: 0 };
  }));
  byId("model").textContent = models.data[0]?.owned_by ?? "";
  who.replaceChildren(...names.map((name) => make("option", { value: name }, name)));
  if (spoken.length > 1) who.append(make("option", { value: MIXED }, "a mixture"));
  const collection = byId("collection"), before = collection.value;
  collection.replaceChildren(make("option", { value: "" }, "nowhere"),
    ...kept.data.map(({ name }) => make("option", { value: name }, name)));
  collection.value = [...collection.options].some((each) => each.value === before) ? before : "";
  byId("remembering").hidden = collection.options.length < 2;
  byId("mixing").hidden = spoken.length < 2;
  byId("sliders").replaceChildren(...personas.map(slider));
  choose(names.includes(wanted) || (wanted === MIXED && spoken.length > 1) ? wanted : names[0]);
}

// ---- who answers ----------------------------------------------------------------------------------------------------

function slider(persona, at) {
  const input = make("input", { type: "range", min: 0, max: 100, step: 1, id: `share-${at}`, hue: hue(persona.name) });
  input.oninput = () => share(persona, Number(input.value) / 100);
  return make(
    "div", { class: "slider", hue: hue(persona.name) },
    make("span", { class: "dot", "aria-hidden": "true" }),
    make("label", { htmlFor: input.id }, persona.name),
    make("span", { class: "share", "aria-hidden": "true" }),
    input,
    persona.about ? make("p", { class: "hint", title: persona.about }, persona.about) : null,
  );
}

function choose(name) {
  wanted = name;
  const mixed = personas.some((persona) => persona.share > 0 && persona.share < 1);
  for (const [at, persona] of personas.entries()) {
    if (name !== MIXED) persona.share = persona.name === name ? 1 : 0;
    else if (!mixed) persona.share = at < 2 ? 0.5 : 0;
  }
  showShares();
}

function share(moved, value) { // the others share what is left, as they did before
  const others = personas.filter((persona) => persona !== moved);
  const before = others.reduce((sum, persona) => sum + persona.share, 0);
  moved.share = value;
  for (const persona of others) {
    persona.share = (1 - value) * (before > 0 ? persona.share / before : 1 / others.length);
  }
  const alone = personas.find((persona) => persona.share > 0.995);
  if (alone) choose(alone.name);
  else {
    wanted = MIXED;
    showShares();
  }
}

function mixture() { // of whole percents that add up to 1
  const rounded = personas.map((persona) => ({ name: persona.name, share: Math.round(100 * persona.share) }));
  const most = rounded.reduce((a, b) => (b.share > a.share ? b : a), rounded[0]);
  if (most) most.share += 100 - rounded.reduce((sum, each) => sum + each.share, 0);
  return Object.fromEntries(rounded.filter((each) => each.share > 0).map((each) => [each.name, each.share / 100]));
}

function showShares() {
  for (const [at, persona] of personas.entries()) {
    const input = byId(`share-${at}`), shown = percent(persona.share);
    input.value = Math.round(100 * persona.share);
    input.setAttribute("aria-valuetext", shown);
    input.parentElement.querySelector(".share").textContent = shown;
  }
  who.value = wanted;
  const mixed = who.querySelector(`option[value="${MIXED}"]`);
  if (mixed) mixed.textContent = wanted === MIXED ? written(mixture()) : "a mixture";
  const leading = personas.reduce((a, b) => (b.share > (a?.share ?? 0) ? b : a), null);
  byId("temperature").placeholder = leading?.sampling.temperature ?? "";
  byId("tokens").placeholder = leading?.sampling.max_tokens ?? "all that fit";
  byId("mixing-bar").replaceChildren(...bar(personas.map((persona) => [persona.share, hue(persona.name)])));
}

// ---- asking ---------------------------------------------------------------------------------------------------------

function body(turn) {
  const number = (id) => (byId(id).value === "" ? undefined : Number(byId(id).value));
  const texts = byId("memory").value.split(/\n\s*\n/).map((text) => text.trim()).filter(Boolean);
  const instructions = byId("instructions").value.trim();
  const before = turns.slice(0, turns.indexOf(turn)).filter((earlier) => earlier.said);
  const mixed = wanted === MIXED;
  const collection = byId("collection").value;
  const memory = { ...(texts.length && { texts }), ...(collection && { collection }) };
  const more = {
    ...(mixed && { mixture: mixture() }), ...((collection || texts.length) && { memory }),
    ...(byId("receipt").checked && { receipt: true }),
  };
  return JSON.stringify({
    model: mixed ? "base" : wanted || "base",
    messages: [
      ...(instructions ? [{ role: "system", content: instructions }] : []),
      ...before.flatMap((earlier) => [
        { role: "user", content: earlier.question }, { role: "assistant", content: earlier.said },
      ]),
      { role: "user", content: turn.question },
    ],
    temperature: number("temperature"), max_tokens: number("tokens"), seed: number("seed"),
    stream: true, stream_options: { include_usage: true },
    ...(Object.keys(more).length && { abi: more }),
  });
}

function ask(text) {
  const box = make("article", {},
    make("div", { class: "asked" }, make("h3", { class: "spoken" }, "You asked"), make("p", { dir: "auto" }, text)));
  const turn = { question: text, said: "", box, answer: null };
  turns.push(turn);
  turnsBox.append(box);
  byId("empty").hidden = true;
  return answer(turn);
}

async function answer(turn) {
  for (const old of turnsBox.querySelectorAll(".again")) old.remove();
  turn.answer?.remove();
  turn.said = "";
  const asked = wanted === MIXED ? mixture() : { [wanted || "base"]: 1 };
  const name = written(asked);
  const said = make("div", { class: "said", dir: "auto" });
  const lead = Object.entries(asked).reduce((a, b) => (b[1] > a[1] ? b : a))[0];
  turn.answer = make("article", { "aria-busy": "true" },
    make("h3", { class: "by" }, make("span", { class: "dot", hue: hue(lead), "aria-hidden": "true" }),
      name, make("span", { class: "spoken" }, " answered")), said);
  turn.box.after(turn.answer);
  scroller.scrollTop = scroller.scrollHeight;
  say(`${name} is answering.`);
  const mine = new AbortController();
  running = mine;
  showRunning();
  const made = { began: performance.now() };
  const paint = painter(said, turn);
  let failure = null;
  try {
    const reply = await call("v1/chat/completions", { method: "POST", body: body(turn), signal: mine.signal });
    made.id = reply.headers.get("x-request-id");
    for await (const told of events(reply)) {
      const text = told.choices[0]?.delta.content;
      if (text) {
        made.first ??= performance.now() - made.began;
        turn.said += text;
        paint();
      }
      made.finish = told.choices[0]?.finish_reason ?? made.finish;
      made.abi = told.abi ?? made.abi;
      made.usage = told.usage ?? made.usage;
    }
  } catch (error) {
    failure = error;
  }
  if (running === mine) running = null;
  showRunning();
  const near = isNear();
  show(said, turn.said);
  turn.answer.removeAttribute("aria-busy");
  end(turn, made, failure);
  if (near) scroller.scrollTop = scroller.scrollHeight;
}

const isNear = () => scroller.scrollHeight - scroller.scrollTop - scroller.clientHeight < 90;

function painter(into, turn) { // once a frame, however many tokens came
  let waiting = false;
  return () => {
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(() => {
      waiting = false;
      const near = isNear();
      show(into, turn.said);
      if (near) scroller.scrollTop = scroller.scrollHeight;
    });
  };
}

function show(into, text) { // what stands between fences is code
  const parts = text.split(/^```[^\n]*\n?/m);
  for (const [at, part] of parts.entries()) {
    const shown = at % 2 ? part.replace(/\n$/, "") : part.replace(/^\n+|\n+$/g, "");
    const there = into.children[at] ?? into.appendChild(make(at % 2 ? "pre" : "p"));
    if (there.textContent !== shown) there.textContent = shown;
    there.hidden = !shown;
  }
  while (into.children.length > parts.length) into.lastChild.remove();
}

function end(turn, made, failure) {
  const tools = make("div", { class: "tools" });
  if (turn.said) tools.append(button("Copy", (event) => copy(turn.said, event.currentTarget)));
  const again = button(failure && failure.name !== "AbortError" ? "Try again" : "Regenerate", () => {
    send.focus();
    answer(turn);
  });
  again.classList.add("again");
  tools.append(again);
  if (failure?.name === "AbortError") {
    turn.answer.append(make("p", { class: "note" }, "Stopped."));
    say("Stopped.");
  } else if (failure) {
    const wait = failure.wait ? make("div", {}, `Ask again in ${failure.wait} s.`) : null;
    turn.answer.append(make("div", { class: "error", role: "alert" },
      make("p", {}, "No answer"), make("div", {}, failure.message), wait));
    if (failure.status === 401) askForKey();
  } else {
    if (made.finish === "length") turn.answer.append(make("p", { class: "note" }, "Cut off: the most tokens were reached."));
    if (!turn.said) turn.answer.append(make("p", { class: "note" }, "The answer is empty."));
    say(`${turn.said || "The answer is empty."}`);
  }
  turn.answer.append(tools);
  if (made.abi) turn.answer.append(details(made));
}

async function copy(text, from) {
  try {
    await navigator.clipboard.writeText(text);
  } catch { // a page that did not come over TLS has no clipboard
    const area = make("textarea", { value: text, class: "spoken" });
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
    from.focus();
  }
  const label = (from.dataset.label ??= from.textContent);
  from.textContent = "Copied";
  say("Copied.");
  setTimeout(() => { from.textContent = label; }, 2000);
}

// ---- what an answer was made from -----------------------------------------------------------------------------------

function details({ abi, usage, first, began, id }) {
  const spent = PARTS.filter((part) => part in abi.latency_ms).map((part, at) => [part, abi.latency_ms[part], `var(--hue-${at})`]);
  const all = spent.reduce((sum, [, ms]) => sum + ms, 0);
  const ms = (value) => (value < 10 ? `${value.toFixed(1)} ms` : `${Math.round(value)} ms`);
  const line = (name, value, color) => make("tr", color ? {} : { class: "all" },
    make("th", { scope: "row" }, color ? make("span", { class: "dot", hue: color, "aria-hidden": "true" }) : null, name),
    make("td", {}, ms(value)));
  const shares = Object.entries(abi.mixture);
  const heard = abi.memories.length === 1 ? "1 memory" : abi.memories.length ? `${abi.memories.length} memories` : null;
  const numbers = {
    ...(usage && { read: `${usage.prompt_tokens} tokens, ${usage.prompt_tokens_details?.cached_tokens ?? 0} of them known already`,
      said: `${usage.completion_tokens} tokens` }),
    seed: abi.seed, request: id,
  };
  return make("details", {},
    make("summary", {}, ["How it was made", `${(all / 1000).toFixed(1)} s`, heard].filter(Boolean).join(" · ")),
    make("div", { class: "made" },
      make("h4", {}, "Mixture"),
      make("p", {}, written(abi.mixture)),
      make("div", { class: "bar", "aria-hidden": "true" }, ...bar(shares.map(([name, share]) => [share, hue(name)]))),
      make("h4", {}, "Latency by part"),
      make("div", { class: "bar", "aria-hidden": "true" }, ...bar(spent.map(([, value, color]) => [value, color]))),
      make("table", { "aria-label": "Latency by part" }, make("tbody", {},
        ...spent.map(([part, value, color]) => line(ABOUT[part], value, color)),
        line("together", all),
        first === undefined ? null : line("until the first words were seen", first, "transparent"))),
      make("h4", {}, "Memories"),
      abi.memories.length
        ? make("ol", { class: "memories" }, ...abi.memories.map(memory))
        : make("p", { class: "note" }, "None were used."),
      make("h4", {}, "Lineage"),
      tell(abi.lineage),
      make("h4", {}, "Numbers"),
      tell(numbers),
      ...(abi.receipts ?? []).filter(Boolean).map((receipt) =>
        button("Copy the receipt", (event) => copy(JSON.stringify(receipt), event.currentTarget)))));
}

function memory({ text, ...rest }) {
  const isPlain = (value) => (typeof value === "string" && !isDigest(value)) || typeof value === "number";
  const plain = Object.entries(rest).filter(([, value]) => isPlain(value) && value !== "");
  const other = Object.entries(rest).filter(([, value]) => !isPlain(value));
  return make("li", {}, text ? make("q", {}, text) : null,
    make("p", {}, plain.map(([name, value]) => `${name} ${typeof value === "number" ? Number(value.toFixed(4)) : value}`).join(" · ")),
    other.length ? tell(Object.fromEntries(other)) : null);
}

const isDigest = (value) => /^[0-9a-f]{16,}$/.test(value);

function tell(value) { // any JSON, as names and values
  if (value === null || value === undefined) return make("span", { class: "note" }, "none");
  if (typeof value !== "object") {
    return make(isDigest(value) ? "code" : "span", {}, String(value));
  }
  if (Array.isArray(value)) return make("ol", {}, ...value.map((each) => make("li", {}, tell(each))));
  return make("dl", {}, ...Object.entries(value).flatMap(([name, each]) => [
    make("dt", {}, name.replaceAll("_", " ")), make("dd", {}, tell(each)),
  ]));
}

// ---- the page -------------------------------------------------------------------------------------------------------

function showRunning() { // one button, so that the focus stays on it
  send.textContent = running ? "Stop" : "Send";
  send.classList.toggle("stop", running !== null);
}

function showPanel(open) {
  panel.classList.toggle("open", open);
  byId("open").setAttribute("aria-expanded", String(open));
  for (const behind of [byId("chat"), document.querySelector("header")]) behind.inert = open;
  byId(open ? "close" : "open").focus();
}

const isNarrow = () => getComputedStyle(byId("open")).display !== "none";

function askForKey() {
  if (isNarrow()) showPanel(true);
  byId("key").focus();
}

async function start() {
  trouble.hidden = true;
  try {
    await load();
  } catch (error) {
    const asks = error.status === 401;
    trouble.textContent = asks && !byId("key").value ? "This server asks for an API key." : error.message;
    trouble.hidden = false;
    if (asks) askForKey();
  }
}

byId("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  if (running) return running.abort();
  const text = question.value.trim();
  if (!text) return question.focus();
  question.value = "";
  return ask(text);
});
question.addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  if (!running) byId("ask").requestSubmit();
});
document.addEventListener("keydown", (event) => {
  if (event.key !== "Escape") return;
  if (panel.classList.contains("open")) showPanel(false);
  else running?.abort();
});
who.addEventListener("change", () => choose(who.value));
byId("open").addEventListener("click", () => showPanel(true));
byId("close").addEventListener("click", () => showPanel(false));
byId("new").addEventListener("click", () => {
  running?.abort();
  turns.length = 0;
  turnsBox.replaceChildren();
  byId("empty").hidden = false;
  question.focus();
});
byId("examples").addEventListener("click", (event) => {
  const example = event.target.closest("button");
  if (!example) return;
  question.value = example.textContent;
  question.focus();
});
byId("key").value = sessionStorage.getItem(KEY) ?? "";
byId("key").addEventListener("change", () => {
  const key = byId("key").value.trim();
  if (key) sessionStorage.setItem(KEY, key);
  else sessionStorage.removeItem(KEY);
  start();
});
matchMedia("(max-width: 60rem)").addEventListener("change", (event) => {
  if (!event.matches && panel.classList.contains("open")) showPanel(false);
});

start();
if (matchMedia("(hover: hover) and (pointer: fine)").matches) question.focus();
