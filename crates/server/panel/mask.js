// A mask drawn over a picture: strokes of a round brush, by pen, finger, mouse or keys. What is drawn is made anew.

import { showIn } from './key.js';

/** Pixels of the longer side that a mask is drawn with; the service brings it to the picture's size. */
const SIDE_MAX = 1024;

/** The brush, in hundredths of the longer side. */
const SIZE_MIN = 1;
const SIZE_MAX = 40;
const SIZE_FIRST = 8;

/** How far a key moves the brush, in parts of its own size. */
const STEP = 0.5;

const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

/** The canvas over a picture. */
export class Mask {
  /** `onDone()` is called after each stroke. */
  constructor(canvas, onDone) {
    this.canvas = canvas;
    this.context = canvas.getContext('2d', { willReadFrequently: true });
    this.onDone = onDone;
    this.onTool = () => {};
    this.erase = false;
    this.brush = SIZE_FIRST;
    this.close();
    canvas.addEventListener('pointerdown', (event) => this.begin(event));
    canvas.addEventListener('pointermove', (event) => this.go(event));
    for (const name of ['pointerup', 'pointercancel']) canvas.addEventListener(name, (event) => this.end(event));
    canvas.addEventListener('pointerleave', () => this.point(null));
    canvas.addEventListener('keydown', (event) => this.key(event));
    canvas.addEventListener('focus', () => this.point(this.at || { x: canvas.width / 2, y: canvas.height / 2 }));
    canvas.addEventListener('blur', () => this.point(null));
  }

  /** Hundredths of the longer side. */
  get size() {
    return this.brush;
  }

  set size(value) {
    this.brush = Math.min(SIZE_MAX, Math.max(SIZE_MIN, Math.round(value) || SIZE_FIRST));
    this.draw();
  }

  get canUndo() {
    return this.strokes.length > 0;
  }

  /** Whether nothing is masked. */
  get empty() {
    return !this.base && !this.strokes.some((stroke) => !stroke.erase && !stroke.clear);
  }

  /** Begins anew over a picture of this size; `address`: a mask that is there already. */
  open(width, height, address) {
    this.close();
    const scale = Math.min(1, SIDE_MAX / Math.max(width, height));
    this.canvas.width = Math.max(1, Math.round(width * scale));
    this.canvas.height = Math.max(1, Math.round(height * scale));
    if (!address) return;
    const image = new Image();
    image.onload = () => {
      this.base = image;
      this.draw();
      this.onTool();
    };
    showIn(image, address);
  }

  /** There is no picture. */
  close() {
    this.base = null;
    this.strokes = [];
    this.stroke = null;
    this.at = null;
    this.draw();
  }

  undo() {
    this.strokes.pop();
    this.draw();
    this.onDone();
  }

  clear() {
    if (this.base) {
      this.base = null;
      this.strokes = [];
    } else {
      this.strokes.push({ clear: true });
    }
    this.draw();
    this.onDone();
  }

  radius() {
    return (Math.max(this.canvas.width, this.canvas.height) * this.brush) / 200;
  }

  where(event) {
    const box = this.canvas.getBoundingClientRect();
    return { x: ((event.clientX - box.left) / box.width) * this.canvas.width, y: ((event.clientY - box.top) / box.height) * this.canvas.height };
  }

  begin(event) {
    if (event.button > 0 || this.stroke) return;
    event.preventDefault();
    this.canvas.focus({ preventScroll: true });
    this.canvas.setPointerCapture(event.pointerId);
    this.stroke = { pointer: event.pointerId, erase: this.erase, radius: this.radius(), points: [this.where(event)] };
    this.strokes.push(this.stroke);
    this.draw();
  }

  go(event) {
    if (this.stroke && this.stroke.pointer === event.pointerId) {
      // What moved between two frames is part of the line.
      const events = event.getCoalescedEvents ? event.getCoalescedEvents() : [];
      for (const one of events.length ? events : [event]) this.stroke.points.push(this.where(one));
    }
    this.point(this.where(event));
  }

  end(event) {
    if (!this.stroke || this.stroke.pointer !== event.pointerId) return;
    this.stroke = null;
    this.draw();
    this.onDone();
  }

  /** Where the brush is shown. */
  point(at) {
    this.at = at;
    this.draw();
  }

  key(event) {
    if (event.altKey) return;
    const arrow = ARROWS[event.key];
    const modified = event.ctrlKey || event.metaKey;
    if (modified && event.key.toLowerCase() === 'z') this.undo();
    else if (modified) return;
    else if (arrow) this.move(arrow, event.shiftKey ? 4 : 1);
    else if (event.key === ' ' || event.key === 'Enter') this.dot();
    else if (event.key === '[' || event.key === '-') this.size -= 1;
    else if (event.key === ']' || event.key === '+') this.size += 1;
    else if (event.key === 'e') this.erase = !this.erase;
    else if (event.key === 'Delete' || event.key === 'Backspace') this.clear();
    else return;
    event.preventDefault();
    event.stopPropagation();
    this.onTool();
  }

  move([x, y], times) {
    const by = this.radius() * STEP * times;
    const from = this.at || { x: this.canvas.width / 2, y: this.canvas.height / 2 };
    this.point({ x: Math.min(this.canvas.width, Math.max(0, from.x + x * by)), y: Math.min(this.canvas.height, Math.max(0, from.y + y * by)) });
  }

  dot() {
    const at = this.at || { x: this.canvas.width / 2, y: this.canvas.height / 2 };
    this.strokes.push({ erase: this.erase, radius: this.radius(), points: [at] });
    this.draw();
    this.onDone();
  }

  /** Paints what is masked in this colour, the rest stays transparent. */
  paint(context, colour) {
    const { width, height } = this.canvas;
    context.clearRect(0, 0, width, height);
    if (this.base) paintBase(context, this.base, width, height);
    for (const stroke of this.strokes) {
      if (stroke.clear) {
        context.clearRect(0, 0, width, height);
        continue;
      }
      context.globalCompositeOperation = stroke.erase ? 'destination-out' : 'source-over';
      context.strokeStyle = context.fillStyle = '#fff';
      context.lineCap = context.lineJoin = 'round';
      context.lineWidth = stroke.radius * 2;
      const [first, ...rest] = stroke.points;
      context.beginPath();
      // A line of no length is a dot in some browsers and nothing in others.
      context.arc(first.x, first.y, stroke.radius, 0, Math.PI * 2);
      context.fill();
      context.beginPath();
      context.moveTo(first.x, first.y);
      for (const point of rest) context.lineTo(point.x, point.y);
      context.stroke();
    }
    context.globalCompositeOperation = 'source-in';
    context.fillStyle = colour;
    context.fillRect(0, 0, width, height);
    context.globalCompositeOperation = 'source-over';
  }

  draw() {
    const { context } = this;
    this.paint(context, getComputedStyle(this.canvas).color);
    if (!this.at) return;
    context.strokeStyle = '#fff';
    context.lineWidth = Math.max(1, this.canvas.width / 400);
    context.beginPath();
    context.arc(this.at.x, this.at.y, this.radius(), 0, Math.PI * 2);
    context.stroke();
    context.strokeStyle = '#000';
    context.beginPath();
    context.arc(this.at.x, this.at.y, this.radius() + context.lineWidth, 0, Math.PI * 2);
    context.stroke();
  }

  /** The mask as a file: white is drawn anew. */
  async file() {
    const made = document.createElement('canvas');
    made.width = this.canvas.width;
    made.height = this.canvas.height;
    const context = made.getContext('2d');
    this.paint(context, '#fff');
    context.globalCompositeOperation = 'destination-over';
    context.fillStyle = '#000';
    context.fillRect(0, 0, made.width, made.height);
    return new Promise((done, fail) => {
      made.toBlob((blob) => (blob ? done(blob) : fail(new Error('the mask became no picture'))), 'image/png');
    });
  }
}

/** A mask that is there: as solid as it is bright. */
function paintBase(context, image, width, height) {
  context.drawImage(image, 0, 0, width, height);
  const pixels = context.getImageData(0, 0, width, height);
  for (let at = 0; at < pixels.data.length; at += 4) pixels.data[at + 3] = pixels.data[at];
  context.putImageData(pixels, 0, 0);
}
