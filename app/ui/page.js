// Copy buttons and the Escape key. Everything else is asked of Python.
(() => {
  const copied = (button) => {
    button.textContent = 'Copied';
    setTimeout(() => { button.textContent = 'Copy'; }, 1500);
  };
  document.addEventListener('click', (event) => {
    const button = event.target.closest('[data-do="copy"]');
    if (!button) return;
    const row = button.closest('.message-row, .bot-row');
    const text = [...row.querySelectorAll('.md')].map((part) => part.innerText).join('\n').trim();
    navigator.clipboard.writeText(text).then(() => copied(button));
  });
  // Escape stops the model; when it is idle it closes the passage.
  document.addEventListener('keydown', (event) => {
    if (event.key !== 'Escape' || event.defaultPrevented) return;
    const stop = document.querySelector('#question .stop-button');
    (stop ?? document.querySelector('[data-do="close"]'))?.click();
  });
})();
