// SPDX-License-Identifier: Apache-2.0
// A visitor's file becomes what the model's image processor makes of it. Resizing is that of Pillow, to the bit: weights
// in fixed point, rows first, then columns, each result rounded to 8 bits.
// Source: `image_processing_pil_svit.py` of svit-hf; `ImagingResample` of Pillow (src/libImaging/Resample.c).

// bits after the point of a weight: 8 of the pixel, and 2 for sums that overshoot, leave as many of 32
const FRACTION_BITS = 32 - 8 - 2;

const FILTERS = {
  bilinear: { reach: 1, weight: (x) => Math.max(0, 1 - Math.abs(x)) },
  bicubic: { reach: 2, weight: (x) => cubic(Math.abs(x)) },
};

/** Reason why a file cannot be used, for the visitor. */
export class Refusal extends Error {}

/**
 * Decode a picture, upright, in 8 bits.
 *
 * @param {Blob} file
 * @param {{maxBytes: number, maxPixels: number}} limits
 * @returns {Promise<{width: number, height: number, rgba: Uint8ClampedArray | Uint8Array, isBlended: boolean}>}
 */
export async function readPicture(file, limits) {
  if (file.size > limits.maxBytes) {
    const [size, most] = [file.size, limits.maxBytes].map((bytes) => Math.round(bytes / 1e6));
    throw new Refusal(`This file has ${size} MB; the page takes ${most}.`);
  }
  const head = new Uint8Array(await file.slice(0, 25).arrayBuffer());
  // a PNG states its bits for each channel there
  if (head[0] === 0x89 && head[1] === 0x50 && head[24] === 16) {
    throw new Refusal("This picture has 16 bits for each channel, of which browsers read 8. Save it with 8 bits first.");
  }
  let bitmap;
  try {
    // as Pillow: colour profiles are not applied
    bitmap = await createImageBitmap(file, { colorSpaceConversion: "none", premultiplyAlpha: "none" });
  } catch {
    throw new Refusal("This file cannot be shown: it is no picture that this browser can read, or it is damaged.");
  }
  const { width, height } = bitmap;
  if (width * height > limits.maxPixels) {
    throw new Refusal(`This picture is too large: the page takes ${limits.maxPixels / 1e6} million pixels.`);
  }
  const context = new OffscreenCanvas(width, height).getContext("2d", { willReadFrequently: true });
  context.drawImage(bitmap, 0, 0);
  const blended = context.getImageData(0, 0, width, height).data;
  let alpha = 255;
  for (let at = 3; at < blended.length; at += 4) alpha &= blended[at];
  const rgba = alpha === 255 ? blended : readUnblended(bitmap);
  bitmap.close();
  return { width, height, rgba: rgba ?? blended, isBlended: rgba === null };
}

/**
 * Read the colours of a picture as they are stored, also where it is transparent: the image processor drops alpha, while
 * a 2D context loses the colours below it. `null` where WebGL cannot do that.
 */
function readUnblended(bitmap) {
  const gl = new OffscreenCanvas(1, 1).getContext("webgl");
  if (!gl || Math.max(bitmap.width, bitmap.height) > gl.getParameter(gl.MAX_TEXTURE_SIZE)) return null;
  gl.bindTexture(gl.TEXTURE_2D, gl.createTexture());
  gl.pixelStorei(gl.UNPACK_COLORSPACE_CONVERSION_WEBGL, gl.NONE);
  gl.texImage2D(gl.TEXTURE_2D, 0, gl.RGBA, gl.RGBA, gl.UNSIGNED_BYTE, bitmap);
  gl.bindFramebuffer(gl.FRAMEBUFFER, gl.createFramebuffer());
  gl.framebufferTexture2D(gl.FRAMEBUFFER, gl.COLOR_ATTACHMENT0, gl.TEXTURE_2D, gl.getParameter(gl.TEXTURE_BINDING_2D), 0);
  if (gl.checkFramebufferStatus(gl.FRAMEBUFFER) !== gl.FRAMEBUFFER_COMPLETE) return null;
  const rgba = new Uint8Array(bitmap.width * bitmap.height * 4);
  gl.readPixels(0, 0, bitmap.width, bitmap.height, gl.RGBA, gl.UNSIGNED_BYTE, rgba);
  return gl.getError() === gl.NO_ERROR ? rgba : null;
}

/**
 * Prepare a picture for the model.
 *
 * @param {{width: number, height: number, rgba: Uint8ClampedArray | Uint8Array}} picture
 * @param {{covered: number[], crop: number[], resample: string, mean: number[], std: number[]}} settings the area that
 *   is just covered, and what is cut from its centre, `[height, width]`; mean and deviation of each channel, 0 to 1
 * @returns {{view: ImageData, pixelValues: Float32Array}} what the model sees, and its input, `(channels, height, width)`
 */
export function prepare(picture, settings) {
  const size = coveringSize([picture.height, picture.width], settings.covered);
  const filter = FILTERS[settings.resample];
  // one channel for models of grey pictures
  const channels = settings.mean.length;
  const pixels = channels === 1 ? toGrey(picture.rgba) : withoutAlpha(picture.rgba);
  const rows = resample(pixels, picture.height, picture.width, channels, size[1], filter);
  const resized = resample(rows, 1, picture.height, size[1] * channels, size[0], filter);
  const [height, width] = settings.crop;
  const [top, left] = [cropStart(size[0], height), cropStart(size[1], width)];
  const view = new ImageData(width, height);
  view.data.fill(255);
  const pixelValues = new Float32Array(channels * height * width);
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      const inside = y + top >= 0 && y + top < size[0] && x + left >= 0 && x + left < size[1];
      const [to, from] = [y * width + x, ((y + top) * size[1] + x + left) * channels];
      for (let channel = 0; channel < 3; channel++) {
        const value = inside ? resized[from + (channel % channels)] : 0;
        view.data[to * 4 + channel] = value;
        if (channel < channels) {
          pixelValues[channel * height * width + to] = (value / 255 - settings.mean[channel]) / settings.std[channel];
        }
      }
    }
  }
  return { view, pixelValues };
}

/** Scale `[height, width]` until it just covers an area, proportions kept. */
function coveringSize([height, width], [areaHeight, areaWidth]) {
  return areaHeight * width >= areaWidth * height
    ? [areaHeight, Math.floor((areaHeight * width) / height)]
    : [Math.floor((areaWidth * height) / width), areaWidth];
}

/** Where a centred crop begins: half a pixel goes to the even neighbour; negative where the picture is smaller. */
function cropStart(edge, wanted) {
  if (edge < wanted) return -((wanted - edge) >> 1);
  const half = (edge - wanted) / 2;
  return Number.isInteger(half) ? half : 2 * Math.round(half / 2);
}

/**
 * Resize the middle axis of pixels, shape `(outer, length, inner)`, to `to` pixels.
 *
 * Reducing stretches the filter, so that every pixel has its part in the result.
 */
function resample(pixels, outer, length, inner, to, filter) {
  const scale = length / to;
  const stretch = Math.max(scale, 1);
  const reach = filter.reach * stretch;
  const result = new Uint8ClampedArray(outer * to * inner);
  const one = 2 ** FRACTION_BITS;
  for (let place = 0; place < to; place++) {
    const centre = (place + 0.5) * scale;
    const first = Math.max(0, Math.trunc(centre - reach + 0.5));
    const count = Math.min(length, Math.trunc(centre + reach + 0.5)) - first;
    const shares = Array.from({ length: count }, (_, k) => filter.weight((k + first - centre + 0.5) / stretch));
    const norm = 1 / shares.reduce((sum, share) => sum + share, 0);
    const weights = shares.map((share) => Math.trunc(share * norm * one + 0.5 * Math.sign(share)));
    for (let i = 0; i < outer; i++) {
      for (let j = 0; j < inner; j++) {
        let sum = one / 2;
        let at = (i * length + first) * inner + j;
        for (let k = 0; k < count; k++, at += inner) sum += pixels[at] * weights[k];
        result[(i * to + place) * inner + j] = Math.floor(sum / one);
      }
    }
  }
  return result;
}

function cubic(x) {
  if (x < 1) return (1.5 * x - 2.5) * x * x + 1;
  return x < 2 ? ((-0.5 * x + 2.5) * x - 4) * x + 2 : 0;
}

function withoutAlpha(rgba) {
  const pixels = new Uint8ClampedArray((rgba.length / 4) * 3);
  for (let from = 0, to = 0; from < rgba.length; from += 4) {
    for (let channel = 0; channel < 3; channel++) pixels[to++] = rgba[from + channel];
  }
  return pixels;
}

/** Luma of ITU-R 601, in the fixed point of Pillow's conversion from RGB to L. */
function toGrey(rgba) {
  const grey = new Uint8ClampedArray(rgba.length / 4);
  for (let i = 0; i < grey.length; i++) {
    grey[i] = (rgba[4 * i] * 19595 + rgba[4 * i + 1] * 38470 + rgba[4 * i + 2] * 7471 + 0x8000) >> 16;
  }
  return grey;
}
