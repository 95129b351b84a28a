// The viewer: page or text, the marked place in its middle, the next page at hand, and which passage is open.
(() => {
  if (window.lecternViewer) return; // Gradio puts the head's scripts in a second time
  const STORED = 'lectern-view';
  const WIDE = 860; // pixels: contents stand at the side
  const asText = () => sessionStorage.getItem(STORED) === 'text';
  const wear = () => {
    document.documentElement.classList.toggle('lt-text-view', asText());
    for (const button of document.querySelectorAll('[data-view]'))
      button.setAttribute('aria-pressed', String((button.dataset.view === 'text') === asText()));
  };
  const toMark = (pane) => {
    const mark = [...pane.querySelectorAll('.lt-where, .lt-mark')].find((one) => one.checkVisibility());
    const top = mark ? mark.getBoundingClientRect().top - pane.getBoundingClientRect().top + pane.scrollTop : 0;
    pane.scrollTop = mark ? top - pane.clientHeight / 3 : 0;
  };
  // The chip of the open passage is marked, whichever way it was opened.
  const markChip = () => {
    const open = document.querySelector('#page .lt-page [data-do="without"]')?.dataset.id;
    for (const chip of document.querySelectorAll('.lt-chip[data-do="passage"]')) {
      if (chip.dataset.id === open) chip.setAttribute('aria-current', 'true');
      else chip.removeAttribute('aria-current');
    }
  };
  const fetchNext = (picture) => {
    const next = picture?.src.replace(/\/(\d+)\.jpg$/, (_, number) => `/${Number(number) + 1}.jpg`);
    if (next && next !== picture.src) new Image().src = next;
  };
  window.lecternViewer = {
    // Called when a viewer inside `element` was drawn.
    shows: (element) => requestAnimationFrame(() => {
      const page = element.querySelector('.lt-page');
      markChip();
      if (!page) return;
      const contents = page.querySelector('.lt-contents');
      if (contents && page.clientWidth > WIDE) {
        contents.open = true;
        const list = contents.querySelector('ol'), here = list.querySelector('[aria-current]');
        if (here) list.scrollTop = here.offsetTop - list.offsetTop - list.clientHeight / 2;
      }
      for (const code of page.querySelectorAll('pre')) code.tabIndex = 0; // it scrolls, so keys have to reach it
      wear();
      toMark(page.querySelector('.lt-text') ?? page);
      page.focus({ preventScroll: element.id === 'page' });
      const picture = page.querySelector('.lt-scan img');
      if ([...page.querySelectorAll('nav > .lt-tool')].at(-1)?.disabled) return; // it is the last page
      if (picture?.complete) fetchNext(picture);
      else picture?.addEventListener('load', () => fetchNext(picture), { once: true });
    }),
  };
  document.addEventListener('click', (event) => {
    const button = event.target.closest('[data-view]');
    if (!button) return;
    sessionStorage.setItem(STORED, button.dataset.view);
    wear();
    toMark(button.closest('.lt-page').querySelector('.lt-text'));
  });
  // Answers are drawn anew with every question.
  new MutationObserver((changes) => {
    if (changes.some(({ target }) => target.closest?.('#talk'))) markChip();
  }).observe(document, { childList: true, subtree: true });
})();
