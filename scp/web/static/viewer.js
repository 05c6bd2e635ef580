"use strict";
(() => {
  const viewer = document.getElementById("viewer");
  const image = document.getElementById("image");
  const refusal = document.getElementById("refusal");
  const position = document.getElementById("position");
  const shownWindow = document.getElementById("window");
  const presets = document.getElementById("presets");
  const urls = [...document.querySelectorAll("#images li")].map((one) => one.dataset.url);
  let at = Number(viewer.dataset.at) - 1;
  let level = null;
  let loading = false;
  let again = false;
  presets.hidden = false;

  const address = (index) =>
    urls[index] + (level ? `?window=${level[0]},${level[1]},linear` : "");

  async function show() {
    if (loading) { again = true; return; }
    loading = true;
    const index = at;
    try {
      const answer = await fetch(address(index), { headers: { Accept: "image/jpeg" } });
      if (!answer.ok) throw new Error((await answer.text()).trim());
      const before = image.src;
      image.src = URL.createObjectURL(await answer.blob());
      if (before.startsWith("blob:")) URL.revokeObjectURL(before);
      refusal.hidden = true;
      image.hidden = false;
    } catch (error) {
      refusal.textContent = error.message;
      refusal.hidden = false;
      image.hidden = true;
    }
    image.alt = `Image ${index + 1} of ${urls.length}`;
    position.textContent = `${index + 1} / ${urls.length}`;
    shownWindow.textContent = level ? `centre ${level[0]}, width ${level[1]}` : "";
    loading = false;
    if (again) { again = false; show(); }
  }

  function go(index) {
    const next = Math.min(urls.length - 1, Math.max(0, index));
    if (next === at) return;
    at = next;
    history.replaceState(null, "", `?image=${at + 1}`);
    show();
  }

  document.addEventListener("keydown", (event) => {
    if (event.target.matches("input, select") || event.ctrlKey || event.metaKey) return;
    const steps = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1, PageDown: 10, PageUp: -10 };
    if (event.key in steps) { event.preventDefault(); go(at + steps[event.key]); }
    if (event.key === "Home") { event.preventDefault(); go(0); }
    if (event.key === "End") { event.preventDefault(); go(urls.length - 1); }
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
  presets.querySelector("select").addEventListener("change", (event) => {
    level = event.target.value ? event.target.value.split(",").map(Number) : null;
    show();
  });
  let dragged = null;
  image.addEventListener("pointerdown", (event) => {
    dragged = { x: event.clientX, y: event.clientY, from: level || [128, 256] };
    image.setPointerCapture(event.pointerId);
  });
  image.addEventListener("pointermove", (event) => {
    if (!dragged) return;
    const [centre, width] = dragged.from;
    const step = Math.max(1, width / 256);
    level = [Math.round(centre + (event.clientY - dragged.y) * step),
      Math.max(1, Math.round(width + (event.clientX - dragged.x) * step))];
    show();
  });
  image.addEventListener("pointerup", () => { dragged = null; });
  image.addEventListener("error", () => { if (!image.src.startsWith("blob:")) show(); });
  if (image.complete && !image.naturalWidth) show();
})();
