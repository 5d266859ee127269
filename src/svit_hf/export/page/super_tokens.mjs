// SPDX-License-Identifier: Apache-2.0
// Super tokens over a picture: which one each pixel belongs to most, and the lines between them.
// Source: `visualization/super_tokens.py` of svit-hf.

const LINE = [255, 214, 10];

/**
 * Give every pixel the number of the super token that it belongs to most; shares between tokens are interpolated.
 *
 * @param {Float32Array} association shares of tokens in the super tokens around them, `(cells, tokens of a cell, 9)`
 * @param {number[]} cell height and width of a cell, in tokens
 * @param {number[]} grid height and width of the grid of tokens
 * @param {number[]} size height and width of the result
 * @returns {Int32Array} row-major numbers of super tokens, `(height, width)`
 */
export function assignPixels(association, cell, grid, size) {
  const [rows, columns] = grid.map((length, axis) => Math.ceil(length / cell[axis]));
  const [ys, xs] = [between(grid[0], size[0]), between(grid[1], size[1])];
  const shares = new Float64Array(rows * columns);
  const assigned = new Int32Array(size[0] * size[1]);
  for (let y = 0; y < size[0]; y++) {
    for (let x = 0; x < size[1]; x++) {
      const touched = [];
      for (const [tokenY, shareY] of ys[y]) {
        for (const [tokenX, shareX] of xs[x]) {
          const [row, column] = [Math.floor(tokenY / cell[0]), Math.floor(tokenX / cell[1])];
          const token = (tokenY % cell[0]) * cell[1] + (tokenX % cell[1]);
          const at = ((row * columns + column) * cell[0] * cell[1] + token) * 9;
          for (let k = 0; k < 9; k++) {
            const [toRow, toColumn] = [row + Math.floor(k / 3) - 1, column + (k % 3) - 1];
            if (toRow < 0 || toRow >= rows || toColumn < 0 || toColumn >= columns) continue;
            touched.push(toRow * columns + toColumn);
            shares[toRow * columns + toColumn] += shareY * shareX * association[at + k];
          }
        }
      }
      let best = touched[0];
      for (const number of touched) {
        if (shares[number] > shares[best] || (shares[number] === shares[best] && number < best)) best = number;
      }
      for (const number of touched) shares[number] = 0;
      assigned[y * size[1] + x] = best;
    }
  }
  return assigned;
}

/**
 * Draw a picture with the lines between its super tokens.
 *
 * @param {ImageData} view
 * @param {Int32Array} assigned super token of each of its pixels
 * @param {HTMLCanvasElement} canvas where to; its longer edge becomes `edge` pixels
 * @param {number} edge
 */
export function drawBoundaries(view, assigned, canvas, edge) {
  const scale = edge / Math.max(view.width, view.height);
  [canvas.width, canvas.height] = [Math.round(view.width * scale), Math.round(view.height * scale)];
  const source = new OffscreenCanvas(view.width, view.height);
  source.getContext("2d").putImageData(view, 0, 0);
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.imageSmoothingQuality = "high";
  context.drawImage(source, 0, 0, canvas.width, canvas.height);
  const pixels = context.getImageData(0, 0, canvas.width, canvas.height);
  const owner = (x, y) => {
    const column = Math.floor((Math.min(x, canvas.width - 1) * view.width) / canvas.width);
    return assigned[Math.floor((Math.min(y, canvas.height - 1) * view.height) / canvas.height) * view.width + column];
  };
  for (let y = 0; y < canvas.height; y++) {
    for (let x = 0; x < canvas.width; x++) {
      const own = owner(x, y);
      // two pixels wide
      const near = [owner(x + 1, y), owner(x + 2, y), owner(x, y + 1), owner(x, y + 2)];
      if (near.some((other) => other !== own)) pixels.data.set(LINE, (y * canvas.width + x) * 4);
    }
  }
  context.putImageData(pixels, 0, 0);
}

/** For each of `to` places, the two tokens around it and their shares, `[[token, share], [token, share]]`. */
function between(length, to) {
  return Array.from({ length: to }, (_, place) => {
    const at = Math.max(0, ((place + 0.5) * length) / to - 0.5);
    const first = Math.min(Math.floor(at), length - 1);
    return [[first, 1 - (at - first)], [Math.min(first + 1, length - 1), at - first]];
  });
}
