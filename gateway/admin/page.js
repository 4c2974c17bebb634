'use strict';
const every = 1000; // milliseconds between two looks at the gateway
const main = document.querySelector('main');
const lost = document.getElementById('lost');
let seen = new Date();
let timer = 0;
let looking = false;

// morph makes a look like b and touches only what differs, so that focus,
// selection and the reading position stay.
function morph(a, b) {
  if (a.nodeType === Node.TEXT_NODE) {
    if (a.data !== b.data) a.data = b.data;
    return;
  }
  if (a.nodeType !== Node.ELEMENT_NODE || a.hasAttribute('data-keep')) return;
  for (const { name } of [...a.attributes]) if (!b.hasAttribute(name)) a.removeAttribute(name);
  for (const { name, value } of b.attributes) if (a.getAttribute(name) !== value) a.setAttribute(name, value);
  const old = [...a.childNodes];
  const now = [...b.childNodes];
  now.forEach((child, i) => {
    if (!old[i]) a.append(document.importNode(child, true));
    else if (old[i].nodeName !== child.nodeName) old[i].replaceWith(document.importNode(child, true));
    else morph(old[i], child);
  });
  old.slice(now.length).forEach((child) => child.remove());
}

async function look() {
  if (looking) return;
  looking = true;
  clearTimeout(timer);
  try {
    const answer = await fetch(location.pathname, { signal: AbortSignal.timeout(10 * every) });
    if (!answer.ok) throw new Error('status ' + answer.status);
    const page = new DOMParser().parseFromString(await answer.text(), 'text/html');
    if (page.body.dataset.version !== document.body.dataset.version) return location.reload();
    morph(main, page.querySelector('main'));
    document.title = page.title;
    seen = new Date();
    lost.hidden = true;
  } catch {
    if (lost.hidden) {
      lost.textContent = 'The gateway does not answer. What is shown here is from ' + seen.toISOString().slice(11, 19) + '.';
      lost.hidden = false;
    }
  }
  looking = false;
  if (!document.hidden) timer = setTimeout(look, every);
}
document.addEventListener('visibilitychange', () => document.hidden || look());
timer = setTimeout(look, every);

const steps = ['dns', 'tcp', 'tls', 'token', 'query'];
const box = document.getElementById('test');
let testing = false;

function add(parent, tag, text) {
  const child = document.createElement(tag);
  child.textContent = text;
  parent.append(child);
  return child;
}

// item writes one step: what was found, or what is awaited.
function item(list, step) {
  const li = document.createElement('li');
  if (step.ok !== undefined) add(li, 'i', '').className = step.ok ? 'good' : 'bad';
  add(li, 'b', step.step);
  li.append(step.ok === undefined ? ' is under way' : (step.ok ? ' ok, ' : ' failed, ') + Math.round(step.milliseconds) + ' ms: ' + step.detail);
  if (step.hint) {
    add(li, 'br', '');
    add(li, 'b', 'What to do: ');
    li.append(step.hint);
  }
  list.append(li);
  return li;
}

document.addEventListener('submit', async (event) => {
  const form = event.target.closest('form[data-test]');
  if (!form) return;
  event.preventDefault();
  if (testing) return;
  testing = true;
  box.hidden = false;
  box.replaceChildren();
  add(box, 'h3', 'Test of ' + form.dataset.test);
  const list = add(box, 'ol', '');
  list.className = 'steps';
  box.focus();
  let next = 0;
  let waiting = item(list, { step: steps[0] });
  let result = 'The test was cut off: the gateway did not answer to its end.';
  try {
    const answer = await fetch(form.action, { method: 'POST', headers: { Accept: 'application/x-ndjson' } });
    if (!answer.ok) throw new Error('The gateway refused the test: ' + ((await answer.json()).error || 'status ' + answer.status));
    const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
    for (let text = ''; ;) {
      const { value, done } = await reader.read();
      if (done) break;
      const lines = (text + value).split('\n');
      text = lines.pop();
      for (const line of lines.map((l) => JSON.parse(l))) {
        waiting.remove();
        if (line.steps) {
          result = line.ok ? 'It works.' : 'It does not work.';
        } else {
          item(list, line);
          if (line.ok && steps[++next]) waiting = item(list, { step: steps[next] });
        }
      }
    }
  } catch (e) {
    waiting.remove();
    if (e.message.startsWith('The gateway')) result = e.message;
  }
  add(box, 'p', result);
  testing = false;
});
