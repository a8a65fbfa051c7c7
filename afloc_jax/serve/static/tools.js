"use strict";
// What all other scripts use: elements, numbers, and the state of the page.

const $ = id => document.getElementById(id), settings = JSON.parse($("settings").textContent);
const token = new URLSearchParams(location.search).get("token");
const MOST_FILMS = 500, KEPT = 3;  // films in the list; films of which pictures and maps are kept at a time
const rgb = hex => [1, 3, 5].map(at => parseInt(hex.slice(at, at + 2), 16));
const colours = settings.colours.map(rgb);

// A film: { file, name, picture, full, width, height, warning, spacing, error, answers, tile }. `answers` has for each
// model a Map from phrases to { found, map }: what the server said, and the map as grey values or null.
const state = { films: [], film: null, rows: [], model: 0, mode: "one", hidden: false,
  view: { zoom: 1, x: 0.5, y: 0.5 } };  // x and y: the place of the film in the middle, 0 to 1

const make = (tag, properties = {}, ...children) => {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
};
const number = (value, digits = 2) => value.toFixed(digits).replace("-", "−");
const short = value => (Math.abs(value) >= 0.095 ? number(value) : number(value, 3));
const sentence = text => text.charAt(0).toUpperCase() + text.slice(1);
const counted = (count, one, many) => `${count} ${count === 1 ? one : many}`;
const threshold = () => Number($("threshold").value);
const phoneSized = () => matchMedia("(max-width: 860px)").matches;
function complain(text, where) {
  $("error").textContent = text;
  where?.focus();
}
// What the model does not understand of a phrase; "" if it knows all of it.
const strange = ({ unknown_words: words, truncated }) => [
  words.length ? `The model does not know ${words.map(word => `“${word}”`).join(", ")}.` : "",
  truncated ? "The end is too long and is not read." : ""].filter(Boolean).join(" ");

// The grey values of a picture in a data URL.
async function pixels(uri) {
  const image = new Image();
  image.src = uri;
  await image.decode();
  const canvas = make("canvas", { width: image.width, height: image.height });
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(image, 0, 0);
  const data = context.getImageData(0, 0, image.width, image.height).data;
  const grey = new Uint8Array(image.width * image.height);
  for (let i = 0; i < grey.length; i++) grey[i] = data[4 * i];
  return { width: image.width, height: image.height, grey };
}
