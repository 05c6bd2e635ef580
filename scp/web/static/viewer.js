"use strict";
(() => {
  const viewer = document.getElementById("viewer");
  const image = document.getElementById("image");
  const refusal = document.getElementById("refusal");
  const position = document.getElementById("position");
  const shownWindow = document.getElementById("window");
  const presets = document.getElementById("presets");
  const select = presets.querySelector("select");
  const instances = [...document.querySelectorAll("#images li")].map((one) => one.dataset);
  const last = instances.reduce((sum, one) => sum + Number(one.frames || 1), 0) - 1;
  let at = Number(viewer.dataset.at) - 1;
  let level = null;   // centre and width that were chosen
  let own = null;     // those of the image
  let loading = false;
  let again = false;
  presets.hidden = false;

  function address(index) {
    let left = index;
    for (const one of instances) {
      const frames = Number(one.frames || 1);
      if (left < frames) {
        const frame = frames > 1 ? `/frames/${left + 1}` : "";
        const chosen = level ? `?window=${level[0]},${level[1]},linear` : "";
        return `${viewer.dataset.base}${one.uid}${frame}/rendered${chosen}`;
      }
      left -= frames;
    }
    return "";
  }

  async function show() {
    if (loading) { again = true; return; }
    loading = true;
    const index = at;
    try {
      const answer = await fetch(address(index), { headers: { Accept: "image/jpeg" } });
      if (!answer.ok) throw new Error((await answer.text()).trim());
      own = (answer.headers.get("X-Window") || "").split(",").map(Number);
      const before = image.src;
      image.src = URL.createObjectURL(await answer.blob());
      if (before.startsWith("blob:")) URL.revokeObjectURL(before);
      refusal.hidden = true;
      image.hidden = false;
    } catch (error) {
      own = null;
      refusal.textContent = error instanceof TypeError ? "the server does not answer" : error.message;
      refusal.hidden = false;
      image.hidden = true;
    }
    image.alt = `Image ${index + 1} of ${last + 1}`;
    position.textContent = `${index + 1} / ${last + 1}`;
    const shown = level || own;
    shownWindow.textContent = shown && shown.length === 2
      ? `centre ${Math.round(shown[0])}, width ${Math.round(shown[1])}` : "";
    loading = false;
    if (again) { again = false; show(); }
  }

  function go(index) {
    const next = Math.min(last, Math.max(0, index));
    if (next === at) return;
    at = next;
    history.replaceState(null, "", `?image=${at + 1}`);
    show();
  }

  document.addEventListener("keydown", (event) => {
    if (event.target.matches("input, select") || event.ctrlKey || event.metaKey || event.altKey) return;
    const steps = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1, PageDown: 10, PageUp: -10 };
    if (event.key in steps) { event.preventDefault(); go(at + steps[event.key]); }
    if (event.key === "Home") { event.preventDefault(); go(0); }
    if (event.key === "End") { event.preventDefault(); go(last); }
  });
  image.addEventListener("wheel", (event) => {
    event.preventDefault();
    go(at + Math.sign(event.deltaY));
  }, { passive: false });
  for (const [id, step] of [["back", -1], ["on", 1]]) {
    document.getElementById(id).addEventListener("click", (event) => {
      event.preventDefault();
      go(at + step);
    });
  }
  select.addEventListener("change", () => {
    level = select.value ? select.value.split(",").map(Number) : null;
    show();
  });
  let dragged = null;
  image.addEventListener("pointerdown", (event) => {
    const from = level || own;
    if (!from || from.length !== 2) return;
    dragged = { x: event.clientX, y: event.clientY, from };
    image.setPointerCapture(event.pointerId);
  });
  image.addEventListener("pointermove", (event) => {
    if (!dragged) return;
    const [centre, width] = dragged.from;
    const step = Math.max(1, width / 256);
    level = [Math.round(centre + (event.clientY - dragged.y) * step),
      Math.max(1, Math.round(width + (event.clientX - dragged.x) * step))];
    select.value = "drawn";
    show();
  });
  for (const end of ["pointerup", "pointercancel"]) {
    image.addEventListener(end, () => { dragged = null; });
  }
  show();
})();
