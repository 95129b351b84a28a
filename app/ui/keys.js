// Shortcuts and their list, the theme, and the address of a chat. What they do is done by the page's own buttons.
(() => {
  if (window.lectern) return; // Gradio puts the head's scripts in a second time
  const KEYS = [
    ['Ctrl K', 'Search the chats'], ['Ctrl Shift O', 'New chat'], ['/', 'To the question'],
    ['← →', 'Between versions of an answer'], ['↑', 'Edit the last question (in an empty box)'], ['Esc', 'Stop, or close what is open'], ['?', 'This list'],
  ];
  const tab = (name) => [...document.querySelectorAll('#tabs [role=tab]')].find((one) => one.textContent.trim() === name);
  const focusSoon = (selector, tries = 30) => setTimeout(() => { // a tab may have to be drawn first
    const field = document.querySelector(selector);
    if (field?.checkVisibility()) field.focus();
    else if (tries) focusSoon(selector, tries - 1);
  }, 100);

  const list = () => {
    const known = document.querySelector('.lt-keys');
    if (known) return known;
    const made = document.createElement('dialog');
    made.className = 'lt-keys';
    made.setAttribute('aria-label', 'Keyboard shortcuts');
    const rows = KEYS.map(([key, does]) => `<dt><kbd>${key}</kbd></dt><dd>${does}</dd>`).join('');
    made.innerHTML = `<h2>Keyboard shortcuts</h2><dl>${rows}</dl><form method="dialog"><button class="lt-button">Close</button></form>`;
    (document.querySelector('.gradio-container') ?? document.body).append(made);
    return made;
  };

  // Theme: as the system has it, until the user says otherwise in this browser.
  const STORED = 'lectern-theme';
  const dark = () => document.body.classList.contains('dark');
  const wear = (theme) => { if (theme) document.body.classList.toggle('dark', theme === 'dark'); };
  const keepTheme = () => {
    wear(localStorage.getItem(STORED));
    // Gradio follows the system at its start, which must not undo the choice.
    new MutationObserver(() => {
      const theme = localStorage.getItem(STORED);
      if (theme && dark() !== (theme === 'dark')) wear(theme);
    }).observe(document.body, { attributes: true, attributeFilter: ['class'] });
  };
  if (document.body) keepTheme();
  else addEventListener('DOMContentLoaded', keepTheme);

  const DO = {
    keys: () => list().showModal(),
    theme: () => {
      localStorage.setItem(STORED, dark() ? 'light' : 'dark');
      wear(localStorage.getItem(STORED));
    },
    models: () => tab('Models')?.click(),
    search: () => {
      const side = document.querySelector('#side');
      if (!side?.classList.contains('open')) side?.querySelector('.toggle-button')?.click();
      focusSoon('#side-search :is(input, textarea)');
    },
    fresh: () => { tab('Ask')?.click(); document.querySelector('#new-chat')?.click(); focusSoon('#question textarea'); },
    ask: () => { tab('Ask')?.click(); focusSoon('#question textarea'); },
    version: (word) => {
      const all = [...document.querySelectorAll('#talk .lt-versions')];
      const row = document.activeElement?.closest('#talk .message-row'); // of the answer in focus, else the last one
      (all.find((one) => row?.contains(one)) ?? all.at(-1))?.querySelector(`[aria-label^=${word}]`)?.click();
    },
    earlier: () => DO.version('Earlier'),
    later: () => DO.version('Later'),
    edit: () => {
      const box = [...document.querySelectorAll('.lt-foot summary')].findLast((one) => one.textContent === 'Edit');
      if (box && !box.parentElement.open) box.click();
    },
  };
  document.addEventListener('click', (event) => {
    const button = event.target.closest('[data-here]');
    if (button) DO[button.dataset.here]?.();
  });
  const typing = (target) => target.matches?.('input, textarea, select, [contenteditable]');
  document.addEventListener('keydown', (event) => {
    if (event.defaultPrevented || event.isComposing || document.querySelector('dialog[open]')) return;
    const chord = event.ctrlKey || event.metaKey, key = event.key.toLowerCase();
    let does = '';
    if (chord && !event.shiftKey && key === 'k') does = 'search';
    else if (chord && event.shiftKey && key === 'o') does = 'fresh';
    else if (!chord && !event.altKey && !typing(event.target)) {
      does = { '/': 'ask', '?': 'keys' }[key] ?? '';
      const moves = event.target.closest?.('[role=tab], [role=slider], .lt-text, pre');
      if (!does && !moves && document.querySelector('#talk')?.checkVisibility())
        does = { arrowleft: 'earlier', arrowright: 'later' }[key] ?? '';
    }
    else if (key === 'arrowup' && event.target.matches?.('#question textarea') && !event.target.value) does = 'edit';
    if (!does) return;
    event.preventDefault();
    DO[does]();
  });

  // Buttons of Gradio's that show a picture only get a name.
  const NAMES = {
    '#question .submit-button': 'Ask', '#question .stop-button': 'Stop', '.token-remove.remove-all': 'Remove all',
    '.token-remove:not(.remove-all)': 'Remove', '#talk .scroll-down-button-container button': 'To the end',
  };
  new MutationObserver(() => {
    for (const [which, name] of Object.entries(NAMES))
      for (const button of document.querySelectorAll(`:is(${which}):not([aria-label])`)) button.setAttribute('aria-label', name);
  }).observe(document, { childList: true, subtree: true });

  // Focus goes where the action is: into the field of a box that opens.
  document.addEventListener('toggle', ({ target }) => {
    const field = target.matches('.lt-confirm[open]') && target.querySelector('.lt-pop :is(input, textarea)');
    if (!field) return;
    field.focus({ preventScroll: true });
    if (field.matches('input')) field.select();
  }, true);

  // A click that nothing on the page offers: on a button of our own, as soon as what it calls is there.
  const press = (name, id, tries = 60) => {
    if (!document.getElementById(`do-${name}`)) { // its tab has to be drawn first
      if (tries) setTimeout(() => press(name, id, tries - 1), 250);
      return;
    }
    const link = document.createElement('button');
    Object.assign(link.dataset, { do: name, id });
    link.hidden = true;
    document.body.append(link);
    link.click();
    link.remove();
  };

  // A document has an address, too: its id, and @ with the part that is shown.
  const book = () => decodeURIComponent(location.hash.match(/^#document=(.+)/)?.[1] ?? '');
  let leads = false;
  const openDocument = () => {
    const id = book();
    leads = true; // this click does not leave the document
    tab('Library')?.click();
    leads = false;
    press('open-part', id.includes('@') ? id : `${id}@1`);
  };
  document.addEventListener('click', ({ target }) => {
    if (leads) return;
    const opens = target.closest('[data-do="open-part"], [data-do="found"]:not([disabled])');
    const id = opens?.dataset.id.split('|')[0];
    if (id && id !== book()) {
      history[book() ? 'replaceState' : 'pushState'](null, '', `#document=${encodeURIComponent(id)}`);
    } else if (book() && target.closest('[data-do="found-close"], #tabs [role=tab]') && !opens) {
      history.replaceState(null, '', shown ? `#chat=${encodeURIComponent(shown)}` : location.pathname);
    }
  }, true);
  const waits = (tries) => setTimeout(() => (tab('Library') ? openDocument() : tries && waits(tries - 1)), 250);
  if (book()) waits(120);

  // The address names the chat, so that Back, bookmarks and two windows work.
  const named = () => decodeURIComponent(location.hash.match(/^#chat=(.+)/)?.[1] ?? '');
  let shown = named(), first = true;
  window.lectern = {
    // Called with what the page shows; "after ..." stands for a chat that has no id yet.
    shows: (kept) => {
      const chat = (kept ?? '').startsWith('after ') ? '' : kept ?? '';
      if (chat === shown) return;
      shown = chat;
      if (book()) return; // what is shown is a document
      const address = chat ? `#chat=${encodeURIComponent(chat)}` : location.pathname;
      history[first ? 'replaceState' : 'pushState'](null, '', address);
      first = false;
    },
    recalled: () => named() || (sessionStorage.getItem('lectern-chat') ?? ''),
  };
  addEventListener('popstate', () => {
    if (book()) return openDocument();
    if (named() === shown) return tab('Ask')?.click();
    shown = named();
    press('chat-show', shown);
  });
})();
