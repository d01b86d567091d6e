// Starts NiiVue when its part of the page is reached, and lets a person choose what is seen.
// The cases are in #viewer-cases (JSON), NiiVue is in #niivue (a module, gzip, base64).
"use strict";
(() => {
  const part = document.getElementById("viewer");
  if (!part) return;
  const cases = JSON.parse(document.getElementById("viewer-cases").textContent);
  const canvas = document.getElementById("viewer-canvas");
  const status = document.getElementById("viewer-status");
  const place = document.getElementById("viewer-place");
  const legend = document.getElementById("viewer-legend");
  const choices = Object.fromEntries(["case", "task", "layer", "view"].map((name) => [name, document.getElementById(`viewer-${name}`)]));
  const opacity = document.getElementById("viewer-opacity");
  const LAYERS = { prediction: "prediction", truth: "truth", difference: "where they differ" };
  let viewer = null;
  let isOpen = false;
  let shown = {};
  let work = Promise.resolve();

  const bytes = (text) => Uint8Array.from(atob(text), (character) => character.charCodeAt(0));

  async function load() {
    const packed = new Blob([bytes(document.getElementById("niivue").textContent)]);
    const code = await new Response(packed.stream().pipeThrough(new DecompressionStream("gzip"))).blob();
    const address = URL.createObjectURL(new Blob([code], { type: "text/javascript" }));
    await import(address);
    URL.revokeObjectURL(address);
    viewer = new globalThis.Niivue({
      backColor: [0.05, 0.07, 0.09, 1],
      crosshairColor: [1, 1, 1, 0.6],
      crosshairWidth: 0.5,
      isRadiologicalConvention: true,
      sagittalNoseLeft: true,
      show3Dcrosshair: true,
      isOrientationTextVisible: true,
      dragAndDropEnabled: false,
      logLevel: "error",
    });
    viewer.setInterpolation?.(false);
    await viewer.attachToCanvas(canvas);
    viewer.setMultiplanarLayout?.(2); // a grid
    viewer.onLocationChange = (where) => tell(where);
  }

  // Options of one select; the chosen one stays chosen where it still is one.
  function offer(select, options) {
    const before = select.value;
    select.replaceChildren(...options.map(([value, name]) => Object.assign(document.createElement("option"), { value, textContent: name })));
    if (options.some(([value]) => value === before)) select.value = before;
    select.closest("label").hidden = options.length < 2;
  }

  function wanted() {
    const one = cases[Number(choices.case.value)];
    const task = one.tasks[Number(choices.task.value)];
    return { one, task, layer: choices.layer.value };
  }

  function offerChoices() {
    const one = cases[Number(choices.case.value)];
    offer(choices.task, one.tasks.map((task, number) => [String(number), task.name]));
    const task = one.tasks[Number(choices.task.value)];
    const layers = task ? Object.entries(LAYERS).filter(([key]) => key in task) : [];
    offer(choices.layer, [...layers, ["none", "the image alone"]]);
  }

  function colours(labels) {
    const table = { R: [0], G: [0], B: [0], A: [0], I: [0], labels: [""] };
    labels.forEach(([name, colour], number) => {
      table.R.push(parseInt(colour.slice(1, 3), 16));
      table.G.push(parseInt(colour.slice(3, 5), 16));
      table.B.push(parseInt(colour.slice(5, 7), 16));
      table.A.push(255);
      table.I.push(number + 1);
      table.labels.push(name);
    });
    return table;
  }

  async function show() {
    offerChoices();
    const { one, task, layer } = wanted();
    const key = `${choices.case.value}/${choices.task.value}/${layer}`;
    if (shown.one !== one) {
      while (viewer.volumes.length) viewer.removeVolume(viewer.volumes[0]);
      await viewer.loadFromArrayBuffer(bytes(one.image).buffer, "image.nii.gz");
    } else {
      while (viewer.volumes.length > 1) viewer.removeVolume(viewer.volumes[1]);
    }
    const labels = layer === "difference" ? one.differences : task && layer !== "none" ? task.labels : [];
    if (labels.length) {
      await viewer.loadFromArrayBuffer(bytes(task[layer]).buffer, "labels.nii.gz");
      viewer.volumes[1].setColormapLabel(colours(labels));
      viewer.setOpacity(1, Number(opacity.value));
      viewer.updateGLVolume();
    }
    shown = { one, labels };
    legend.replaceChildren(
      ...labels.map(([name, colour]) => {
        const entry = document.createElement("li");
        const swatch = document.createElement("i");
        swatch.className = "swatch";
        swatch.style.background = colour;
        entry.append(swatch, name);
        return entry;
      }),
    );
    setView();
    status.textContent = `${one.rank} case, ${one.subject_id}${one.told ? ` (${one.told} to fit into this page)` : ""}`;
    part.dataset.shown = key;
  }

  function setView() {
    const types = { planes: viewer.sliceTypeMultiplanar, axial: viewer.sliceTypeAxial, coronal: viewer.sliceTypeCoronal, sagittal: viewer.sliceTypeSagittal, solid: viewer.sliceTypeRender };
    viewer.setSliceType(types[choices.view.value]);
  }

  function tell(where) {
    const values = where.values || [];
    const label = values[1] ? shown.labels[Math.round(values[1].value) - 1] : undefined;
    const at = Array.from(where.mm || []).slice(0, 3).map((mm) => mm.toFixed(1)).join(", ");
    place.textContent = `${at} mm · image ${values[0] ? values[0].value.toPrecision(4) : "–"} · ${label ? label[0] : "no structure"}`;
  }

  // One change after another, however fast somebody chooses; what is chosen before it is open, opens with it.
  function change(what, isOpening = false) {
    isOpen ||= isOpening;
    if (!isOpen) return;
    work = work.then(what).catch((problem) => {
      status.textContent = `The viewer cannot work in this browser: ${problem.message || problem}`;
      part.dataset.failed = "yes";
      console.error(problem);
    });
  }

  offer(choices.case, cases.map((one, number) => [String(number), `${one.rank}: ${one.subject_id}`]));
  offerChoices();
  for (const select of [choices.case, choices.task, choices.layer]) select.addEventListener("change", () => change(show));
  choices.view.addEventListener("change", () => change(setView));
  opacity.addEventListener("input", () => change(() => viewer.volumes[1] && (viewer.setOpacity(1, Number(opacity.value)), viewer.updateGLVolume())));
  for (const button of document.querySelectorAll("[data-open-case]")) {
    button.addEventListener("click", () => {
      choices.case.value = button.dataset.openCase;
      part.scrollIntoView();
      choices.case.focus();
      change(show);
    });
  }
  new IntersectionObserver((entries, observer) => {
    if (!entries.some((entry) => entry.isIntersecting)) return;
    observer.disconnect();
    status.textContent = "Opening ...";
    change(load, true);
    change(show);
  }, { rootMargin: "100px" }).observe(part);
})();
