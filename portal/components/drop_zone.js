// Sends one file at a time in parts: several at once, and each again if it fails.
const PARALLEL = 3;
const RETRIES = 7;
const MAX_DELAY = 15000;
const SPEED_SECONDS = 10;
const KEPT = "lowtide-upload";
const UNITS = [["GB", 1e9], ["MB", 1e6], ["kB", 1e3]];

class Cancelled extends Error {}

const size = (bytes) => {
  const [unit, length] = UNITS.find(([, each]) => bytes >= each) ?? ["B", 1];
  return `${Number((bytes / length).toPrecision(3))} ${unit}`;
};

const span = (seconds) => {
  const whole = Math.ceil(seconds);
  if (whole < 60) return `${whole} s`;
  if (whole < 3600) return `${Math.ceil(whole / 60)} min`;
  return `${Math.floor(whole / 3600)} h ${Math.ceil((whole % 3600) / 60)} min`;
};

export default {
  template: `
    <div class="drop-zone" :class="{ over }" @dragover.prevent="over = true" @dragleave="over = false"
         @drop.prevent="drop">
      <div v-if="file === null" class="drop choose">
        <q-icon name="upload_file" size="32px" aria-hidden="true"></q-icon>
        <span class="drop-title">Drop a JSONL file here, or choose a file</span>
        <span class="muted small">{{ hint }}</span>
        <input type="file" accept=".jsonl,.ndjson,.json,.txt" aria-label="Input file" @change="choose">
      </div>
      <div v-else class="drop">
        <span class="drop-title break">{{ file.name }}</span>
        <div class="drop-progress">
          <q-linear-progress :value="share" rounded size="8px" aria-label="Upload progress"></q-linear-progress>
          <span class="muted small">{{ progress }}</span>
          <span class="small" role="status">{{ trouble }}</span>
        </div>
        <q-btn outline no-caps label="Cancel" @click="cancel"></q-btn>
      </div>
      <div v-if="message" class="banner drop-message" :class="{ plain }" role="alert">{{ message }}</div>
    </div>`,
  props: { path: String, token: String, maxBytes: Number, rejection: String, hint: String },
  data() {
    return { file: null, over: false, message: "", plain: false, trouble: "", sent: 0, speed: 0 };
  },
  computed: {
    share() {
      return this.file.size ? this.sent / this.file.size : 1;
    },
    progress() {
      const parts = [`${size(this.sent)} of ${size(this.file.size)}`, `${Math.floor(100 * this.share)}%`];
      if (this.speed > 0) {
        parts.push(`${size(this.speed)}/s`, `${span((this.file.size - this.sent) / this.speed)} left`);
      }
      return parts.join(" · ");
    },
  },
  mounted() {
    const kept = JSON.parse(sessionStorage.getItem(KEPT) ?? "null");
    sessionStorage.removeItem(KEPT);
    if (kept !== null) {
      this.message =
        `The upload of ${kept.name} was interrupted: the page was reloaded or lost its connection after ` +
        `${size(kept.sent)} of ${size(kept.size)}. Nothing was stored: choose the file again.`;
    }
    addEventListener("beforeunload", this.warn);
  },
  unmounted() {
    removeEventListener("beforeunload", this.warn);
    this.stop?.();
  },
  methods: {
    warn(event) {
      if (this.file !== null) event.preventDefault();
    },
    choose(event) {
      this.take([...event.target.files]);
      event.target.value = "";
    },
    drop(event) {
      this.over = false;
      if (this.file === null) this.take([...event.dataTransfer.files]);
    },
    take(files) {
      this.plain = false;
      if (files.length === 0) return;
      if (files.length > 1 || files[0].size > this.maxBytes) this.message = this.rejection;
      else this.upload(files[0]);
    },
    cancel() {
      this.stop?.();
      this.plain = true;
      this.message = `The upload of ${this.file.name} was cancelled. Nothing was stored.`;
    },
    async upload(file) {
      const aborting = new AbortController();
      Object.assign(this, { file, message: "", plain: false, trouble: "", sent: 0, speed: 0 });
      this.stop = () => aborting.abort();
      this.loaded = new Map();
      this.samples = [];
      const timer = setInterval(() => this.measure(), 500);
      try {
        await this.send(file, aborting.signal);
      } catch (error) {
        aborting.abort();
        if (!(error instanceof Cancelled)) this.message = error.message;
        this.request("cancel", null, {}, null, () => {}).catch(() => {});
      } finally {
        clearInterval(timer);
        sessionStorage.removeItem(KEPT);
        this.file = null;
      }
    },
    async send(file, signal) {
      const start = JSON.stringify({ name: file.name, size: file.size });
      const { upload, part_bytes: length } = await this.patiently("start", start, {}, signal);
      const count = Math.ceil(file.size / length);
      const parts = new Array(count);
      const headers = { "X-Upload": upload };
      let next = 0;
      const sender = async () => {
        while (next < count) {
          const number = next++;
          const data = file.slice(number * length, (number + 1) * length);
          const progress = (bytes) => this.count(number, Math.min(bytes, data.size));
          parts[number] = (await this.patiently("part", data, headers, signal, progress)).id;
          this.count(number, data.size);
        }
      };
      await Promise.all(Array.from({ length: PARALLEL }, sender));
      await this.patiently("complete", JSON.stringify(parts), headers, signal);
    },
    count(number, bytes) {
      this.loaded.set(number, bytes);
      let sent = 0;
      for (const each of this.loaded.values()) sent += each;
      this.sent = sent;
      const { name, size: total } = this.file;
      sessionStorage.setItem(KEPT, JSON.stringify({ name, size: total, sent }));
    },
    measure() {
      this.samples.push([performance.now() / 1000, this.sent]);
      this.samples = this.samples.slice(-2 * SPEED_SECONDS);
      const [[began, before], [now, sent]] = [this.samples[0], this.samples.at(-1)];
      this.speed = now > began ? Math.max(0, (sent - before) / (now - began)) : 0;
    },
    // Repeats a request while the failure may be temporary; returns its JSON.
    async patiently(step, body, headers, signal, progress = () => {}) {
      for (let attempt = 0; ; attempt++) {
        const answer = await this.request(step, body, headers, signal, progress);
        if (answer.status === 200) {
          this.trouble = "";
          return JSON.parse(answer.text);
        }
        progress(0);
        const temporary = answer.status === 0 || answer.status === 408 || answer.status === 429 || answer.status >= 500;
        if (!temporary || attempt === RETRIES) {
          const reason = answer.status === 401 ? "Your session has ended: sign in again." : answer.text;
          throw new Error(reason || "The connection to the portal was lost. Nothing was stored: choose the file again.");
        }
        this.trouble = "The connection was interrupted: trying again.";
        await this.pause(Math.min(500 * 2 ** attempt, MAX_DELAY), signal);
      }
    },
    pause(milliseconds, signal) {
      return new Promise((resolve, reject) => {
        if (signal.aborted) return reject(new Cancelled());
        const timer = setTimeout(resolve, milliseconds);
        signal.addEventListener("abort", () => { clearTimeout(timer); reject(new Cancelled()); });
      });
    },
    // fetch() does not report the progress of a request's body.
    request(step, body, headers, signal, progress) {
      return new Promise((resolve, reject) => {
        if (signal?.aborted) return reject(new Cancelled());
        const request = new XMLHttpRequest();
        request.open("POST", this.path + step);
        request.setRequestHeader("X-Page", this.token);
        for (const [name, value] of Object.entries(headers)) request.setRequestHeader(name, value);
        request.upload.onprogress = (event) => progress(event.loaded);
        request.onload = () => resolve({ status: request.status, text: request.responseText });
        request.onerror = () => resolve({ status: 0, text: "" });
        request.onabort = () => reject(new Cancelled());
        signal?.addEventListener("abort", () => request.abort());
        request.send(body);
      });
    },
  },
};
