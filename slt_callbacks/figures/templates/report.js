"use strict";
// One training step for the whole page: every slider moves the pictures of all sections, and the line in every chart.
const body = document.body;
const steps = body.dataset.steps.split(",").filter(Boolean).map(Number);
const places = body.dataset.places.split(",").filter(Boolean).map(Number);
const sliders = [...document.querySelectorAll("input[type=range]")];

function show(number) {
  document.documentElement.style.setProperty("--at", places[number]);
  for (const slider of sliders) {
    const told = "step " + steps[number].toLocaleString("en");
    slider.value = number;
    slider.setAttribute("aria-valuetext", told);
    slider.closest(".slider").querySelector("output").textContent = told;
  }
  for (const frames of document.querySelectorAll(".frames")) {
    const images = [...frames.querySelectorAll("figure")];
    const shown = images.filter((image) => Number(image.dataset.step) <= steps[number]).pop();
    for (const image of images) image.hidden = image !== shown;
    frames.querySelector(".nothing").hidden = shown !== undefined;
  }
}

if (sliders.length) {
  body.classList.add("steps");
  for (const slider of sliders) {
    slider.closest(".slider").hidden = false;
    slider.addEventListener("input", () => show(Number(slider.value)));
  }
  show(steps.length - 1);
}

// On paper nothing can be opened.
const folded = [...document.querySelectorAll("details")];
window.addEventListener("beforeprint", () => folded.forEach((one) => { one.dataset.open = one.open; one.open = true; }));
window.addEventListener("afterprint", () => folded.forEach((one) => { one.open = one.dataset.open === "true"; }));
