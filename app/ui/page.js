// Copy buttons, the Escape and Enter keys, small boxes that close, scrolling and focus. The rest is asked of Python.
(() => {
  if (window.lecternPage) return; // Gradio puts the head's scripts in a second time
  window.lecternPage = true;
  const copied = (button) => {
    button.textContent = 'Copied';
    setTimeout(() => { button.textContent = 'Copy'; }, 1500);
  };
  document.addEventListener('click', (event) => {
    const button = event.target.closest('[data-do="copy"]');
    if (!button) return;
    navigator.clipboard.writeText(button.dataset.text).then(() => copied(button));
  });
  // A list may be drawn anew between the press and the release of a button: the click is for what stands there now.
  const named = (target) => target?.closest?.('[data-do]');
  let pressed = null;
  document.addEventListener('pointerdown', ({ target }) => { pressed = named(target); }, true);
  document.addEventListener('pointerup', ({ target }) => {
    const before = pressed?.isConnected ? null : pressed, here = named(target);
    pressed = null;
    if (before && here?.dataset.do === before.dataset.do && here.dataset.id === before.dataset.id) here.click();
  }, true);
  // A click elsewhere, or on a passage to hide, closes a question or form that a button opened.
  document.addEventListener('click', (event) => {
    const chosen = event.target.closest('.lt-confirm [data-do="without"]');
    for (const box of document.querySelectorAll('.lt-confirm[open]'))
      if (chosen || !box.contains(event.target)) box.open = false;
  });
  // What opens below the edge comes into view.
  document.addEventListener('toggle', ({ target }) => {
    if (!target.matches('.lt-confirm[open]')) return;
    target.querySelector('.lt-pop')?.scrollIntoView({ block: 'nearest' });
    for (let box = target; box; box = box.parentElement) box.scrollLeft = 0; // only up and down
  }, true);
  // Closing a passage gives the focus back to the chip or the number that opened it.
  let chip = null;
  document.addEventListener('click', (event) => {
    const opens = event.target.closest('[data-do="passage"]'), closes = event.target.closest('[data-do="close"]');
    if (!opens && !closes) return;
    for (const one of document.querySelectorAll('.lt-chip, .lt-cite')) { // which passage is open
      if (opens && one.dataset.do === 'passage' && one.dataset.id === opens.dataset.id) one.setAttribute('aria-current', 'true');
      else one.removeAttribute('aria-current');
    }
    if (opens?.matches('.lt-chip, .lt-cite')) chip = opens;
    if (closes) setTimeout(() => chip?.focus(), 300);
  });
  // Escape closes such a box, or stops the model, or when it is idle closes the passage.
  document.addEventListener('keydown', (event) => {
    if (event.key !== 'Escape' || event.defaultPrevented || document.querySelector('dialog[open]')) return;
    const box = document.querySelector('.lt-confirm[open]');
    if (box) {
      box.open = false;
      box.querySelector('summary').focus();
      return;
    }
    const stop = document.querySelector('#question .stop-button, [data-do="unask"]');
    const closes = [...document.querySelectorAll('[data-do="close"], [data-do="found-close"]')];
    (stop ?? closes.find((button) => button.checkVisibility()))?.click();
  });
  // How long something is waited for already.
  let since = 0;
  setInterval(() => {
    const clocks = document.querySelectorAll('.lt-clock');
    if (!clocks.length) since = 0;
    else if (!since) since = Date.now();
    const waited = Math.round((Date.now() - since) / 1000);
    const text = waited > 2 ? `${waited} s` : '';
    for (const clock of clocks) if (clock.textContent !== text) clock.textContent = text;
  }, 500);
  // Screen readers hear an answer once, when it is whole; Gradio's log would tell every piece of it.
  const heard = document.createElement('div');
  heard.className = 'lt-heard';
  heard.setAttribute('aria-live', 'polite');
  const say = (tries = 50) => setTimeout(() => { // Gradio draws the answer anew, some time later
    const said = [...document.querySelectorAll('#talk .bot-row .lt-md')].at(-1)?.innerText;
    if (said) heard.textContent = said;
    else if (tries) say(tries - 1);
  }, 300);
  let answering = false;
  new MutationObserver(() => {
    for (const log of document.querySelectorAll('#talk :is([role=log], [aria-live]):not([aria-live=off])')) log.setAttribute('aria-live', 'off');
    const runs = Boolean(document.querySelector('#question .stop-button'));
    if (answering && !runs) {
      if (talk() && below() < talk().clientHeight + 500) hold(0); // the passages under it
      if (!heard.isConnected) document.body.append(heard);
      say();
    }
    answering = runs;
  }).observe(document, { childList: true, subtree: true });
  // A new question, and the end of a chat that is opened, come into view, also when the reader had scrolled up; what is
  // read stays where it is when earlier questions are put above it. Gradio draws for a while: until then it is held.
  const talk = () => document.querySelector('#talk .message-wrap')?.parentElement;
  const below = () => (talk() ? talk().scrollHeight - talk().scrollTop : 0);
  let asked = '', held = null;
  const hold = (distance) => {
    held = { distance, until: Date.now() + 1500 };
    requestAnimationFrame(keep);
  };
  const keep = () => {
    if (!held || !talk()) return;
    if (Date.now() < held.until) talk().scrollTop = talk().scrollHeight - held.distance;
    else held = null;
  };
  for (const kind of ['wheel', 'touchmove', 'keydown', 'pointerdown'])
    document.addEventListener(kind, ({ target }) => { if (target.closest?.('#talk')) held = null; }, { capture: true, passive: true });
  document.addEventListener('click', ({ target }) => { if (target.closest('[data-do="earlier"]')) hold(below()); });
  new MutationObserver(() => {
    const last = [...document.querySelectorAll('#talk [data-turn]')].at(-1);
    const now = last ? `${last.dataset.turn} ${last.textContent}` : '';
    if (now !== asked) hold(0);
    else if (held) requestAnimationFrame(keep);
    asked = now;
  }).observe(document, { childList: true, subtree: true });
  // Enter in a list of places takes the first match, and asks in the form of another question.
  document.addEventListener('keydown', (event) => {
    if (event.key !== 'Enter' || event.isComposing) return;
    const place = event.target.closest?.('#focus, #mute');
    if (place?.querySelector('[role=option]') && !place.querySelector('[role=option].active'))
      event.target.dispatchEvent(new KeyboardEvent('keydown', { key: 'ArrowDown', code: 'ArrowDown', bubbles: true }));
    if (event.target.matches?.('.lt-pop textarea') && !event.shiftKey) {
      event.preventDefault();
      event.target.form.requestSubmit();
    }
  }, true);
})();
