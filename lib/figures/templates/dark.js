// On a dark page ink becomes light and ground dark; colours that mean something keep their hue.
function onDark(colour) {
  const rgb = [1, 3, 5].map((at) => parseInt(colour.slice(at, at + 2), 16) / 255);
  const high = Math.max(...rgb);
  const low = Math.min(...rgb);
  const light = (high + low) / 2;
  const saturation = high === low ? 0 : (high - low) / (1 - Math.abs(2 * light - 1));
  if (saturation > 0.4) return colour;
  const shift = 0.96 - 0.74 * light - light;
  const byte = (part) => Math.round(255 * Math.min(1, Math.max(0, part + shift)));
  return "#" + rgb.map((part) => byte(part).toString(16).padStart(2, "0")).join("");
}

function parse(text, dark) {
  return JSON.parse(dark ? text.replace(/(?<=")#[0-9a-fA-F]{6}(?=")/g, onDark) : text);
}
