// <celeriac-progress status="URL" events="URL">: a progress bar that follows a task.
//
// It listens to the server's events; where there are none (an old browser, a proxy, a server without a thread to spare) it asks now and then.
// It sends "celeriac:progress" with each change and "celeriac:done" at the end, both with the status as `detail`; and goes to the page in `next` when the task has succeeded.

if (!customElements.get("celeriac-progress")) {
  const FIRST_PAUSE = 500;
  const LONGEST_PAUSE = 5000;

  class CeleriacProgress extends HTMLElement {
    connectedCallback() {
      this.stop();
      if (window.EventSource) this.listen();
      else this.ask(FIRST_PAUSE);
    }

    disconnectedCallback() {
      this.stop();
    }

    listen() {
      const source = (this.source = new EventSource(this.getAttribute("events")));
      source.onmessage = (event) => this.show(JSON.parse(event.data));
      source.onerror = () => {
        // CONNECTING: the stream has ended, and the browser begins the next one by itself.
        if (source.readyState === EventSource.CLOSED) this.ask(0);
      };
    }

    ask(pause) {
      this.timer = setTimeout(async () => {
        let next = Math.min(LONGEST_PAUSE, Math.max(FIRST_PAUSE, pause * 1.5));
        try {
          const answer = await fetch(this.getAttribute("status"), { headers: { Accept: "application/json" } });
          if (answer.ok) {
            const status = await answer.json();
            if (this.isConnected) this.show(status);
            if (status.ready) return;
          } else if (answer.status < 500) {
            return; // not ours to see
          }
        } catch {
          next = LONGEST_PAUSE; // away
        }
        if (this.isConnected) this.ask(next);
      }, pause);
    }

    stop() {
      this.source?.close();
      clearTimeout(this.timer);
    }

    show(status) {
      const failed = status.ready && status.state !== "SUCCESS";
      const [bar, text, percent] = ["progress", "[role=status]", "[aria-hidden]"].map((part) => this.querySelector(part));
      this.dataset.state = status.state;
      if (status.percent !== null) bar.value = status.percent;
      else if (failed) bar.value = bar.position < 0 ? 100 : bar.value;
      else bar.removeAttribute("value");
      text.setAttribute("aria-busy", !status.ready); // so that screen readers say the end, and not each row on the way
      text.textContent = status.text;
      percent.textContent = status.percent === null ? "" : `${status.percent} %`;
      this.dispatchEvent(new CustomEvent("celeriac:progress", { bubbles: true, detail: status }));
      if (!status.ready) return;
      this.stop();
      this.dispatchEvent(new CustomEvent("celeriac:done", { bubbles: true, detail: status }));
      if (!failed && this.hasAttribute("next")) location.assign(this.getAttribute("next"));
    }
  }

  customElements.define("celeriac-progress", CeleriacProgress);
}
