// Files that are dropped or pasted anywhere, and long texts that are pasted, go where "Add documents" puts its files.
(() => {
  if (window.lecternDrop) return; // Gradio puts the head's scripts in a second time
  window.lecternDrop = true;
  const LONG = 3000; // characters; a longer text is a document, not a question
  const carriesFiles = (data) => [...(data?.types ?? [])].includes('Files');
  const give = (files) => {
    const input = document.querySelector('input[data-testid$="-upload-button"]');
    if (!input || !files.length) return;
    document.querySelector('#tabs [role=tab]')?.click(); // Ask is the first
    const data = new DataTransfer();
    for (const file of files) data.items.add(file);
    input.files = data.files;
    input.dispatchEvent(new Event('change', { bubbles: true }));
  };
  // Boxes of the page that take files themselves.
  const own = (event) => event.target.closest?.('#drop, #import');
  let depth = 0;
  const shade = (on) => document.documentElement.classList.toggle('lt-dropping', on);
  addEventListener('dragenter', (event) => {
    if (!carriesFiles(event.dataTransfer)) return;
    depth += 1;
    shade(true);
  });
  addEventListener('dragleave', (event) => {
    if (!carriesFiles(event.dataTransfer)) return;
    depth = Math.max(0, depth - 1);
    shade(depth > 0);
  });
  addEventListener('dragover', (event) => {
    if (carriesFiles(event.dataTransfer)) event.preventDefault(); // else the browser would open the file
  });
  addEventListener('drop', (event) => {
    depth = 0;
    shade(false);
    if (!carriesFiles(event.dataTransfer)) return;
    event.preventDefault();
    if (!own(event)) give([...event.dataTransfer.files]);
  });
  const named = (text) => {
    const words = text.trim().split(/\s+/).slice(0, 6).join(' ').replace(/[^\p{L}\p{N} ,'-]/gu, '').trim().slice(0, 50);
    return new File([text], `${words || 'Pasted text'}.txt`, { type: 'text/plain' });
  };
  addEventListener('paste', (event) => {
    const data = event.clipboardData;
    if (carriesFiles(data) && data.files.length) {
      event.preventDefault();
      give([...data.files]);
      return;
    }
    const text = data?.getData('text/plain') ?? '';
    if (text.length < LONG || !event.target.closest?.('#question')) return;
    event.preventDefault();
    give([named(text)]);
  }, true);
})();
