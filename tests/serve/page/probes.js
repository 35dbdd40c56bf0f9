// What test_access.py asks of the page: an object of functions, each of which looks and returns what it found.
{
  tabbable: () => [...document.querySelectorAll("a[href], button, input, select, textarea, summary, [tabindex='0']")]
    .filter((one) => one.checkVisibility() && !one.closest("[inert]")),

  name: (one) => one.id || one.textContent,

  // All that Tab should reach, in order.
  stops() {
    return this.tabbable().map(this.name);
  },

  // Where the focus is, how thick its ring is, and whether it is in sight.
  focus() {
    const one = document.activeElement, box = one.getBoundingClientRect();
    const style = getComputedStyle(one.id === "question" ? document.getElementById("ask") : one);
    const hit = document.elementFromPoint(box.x + box.width / 2, box.y + Math.min(box.height, 30) / 2);
    const ring = style.outlineStyle === "none" ? 0 : parseFloat(style.outlineWidth);
    return [this.name(one), ring, one.id === "scroll" || one.contains(hit)];
  },

  // What sticks out at the right.
  spilled: () => [...document.querySelectorAll("body *")]
    .filter((one) => one.checkVisibility() && !one.closest(".spoken"))
    .filter((one) => one.getBoundingClientRect().right > innerWidth + 0.5)
    .map((one) => one.outerHTML.slice(0, 90)),

  // What is too small for a finger.
  small() {
    return this.tabbable().filter((one) => !one.closest(".spoken, .skip")).filter((one) => {
      const box = one.getBoundingClientRect();
      return box.width < 24 || box.height < 24;
    }).map(this.name);
  },

  // Keeps what a screen reader is told.
  listen() {
    window.heard = [];
    const status = document.getElementById("status");
    const told = { childList: true, characterData: true, subtree: true };
    new MutationObserver(() => window.heard.push(status.textContent)).observe(status, told);
  },

  // Contrast as WCAG 2.2 counts it, of texts, edges and marks with what is painted behind them.
  contrast() {
    const parse = (color) => {
      const found = color.match(/[\d.]+/g).map(Number);
      return found.length < 4 ? [...found, 1] : found;
    };
    const light = (color) => color.slice(0, 3).map((part) => part / 255)
      .map((part) => (part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4))
      .reduce((sum, part, at) => sum + part * [0.2126, 0.7152, 0.0722][at], 0);
    const over = (top, under) => [0, 1, 2].map((at) => top[at] * top[3] + under[at] * (1 - top[3]));
    const ground = (one) => {
      if (one === null) return [255, 255, 255];
      const color = parse(getComputedStyle(one).backgroundColor);
      return color[3] === 1 ? color.slice(0, 3) : over(color, ground(one.parentElement));
    };
    const bad = [];
    let seen = 0;
    const check = (what, color, behind, least) => {
      const under = ground(behind), [a, b] = [light(over(parse(color), under)), light(under)];
      const found = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
      seen += 1;
      if (found < least) bad.push([what, Math.round(100 * found) / 100, least]);
    };
    const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    for (let node; (node = walker.nextNode()); ) {
      const one = node.parentElement, style = getComputedStyle(one), size = parseFloat(style.fontSize);
      if (!node.data.trim() || !one.checkVisibility({ visibilityProperty: true }) || one.closest(".spoken")) continue;
      check(node.data, style.color, one, size >= 24 || (size >= 18.66 && style.fontWeight >= 700) ? 3 : 4.5);
    }
    for (const one of document.querySelectorAll("input:not([type=range]), textarea, select")) {
      if (!one.checkVisibility()) continue;
      const framed = one.id === "question" ? document.getElementById("ask") : one;
      check(`edge of ${one.id}`, getComputedStyle(framed).borderTopColor, framed.parentElement, 3);
      if (one.placeholder) check(`hint in ${one.id}`, getComputedStyle(one, "::placeholder").color, one, 4.5);
    }
    for (const one of document.querySelectorAll(".dot, .bar > span")) {
      const color = getComputedStyle(one).backgroundColor;
      if (!one.checkVisibility() || color === "rgba(0, 0, 0, 0)") continue;
      check("mark", color, one.parentElement.closest(":not(.bar)"), 3);
    }
    return { bad, seen };
  },
}
