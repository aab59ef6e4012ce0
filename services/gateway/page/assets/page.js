// Follows one execution: output in capture order, other facts as a list. Only text is ever put on the page.
'use strict';
const page = document.getElementById('execution');
if (page) {
  const kept = 1 << 20; // Characters of output that stay on the page.
  const output = document.getElementById('output');
  const facts = document.getElementById('facts');
  const state = document.getElementById('state');
  const decoders = { STREAM_STDOUT: new TextDecoder(), STREAM_STDERR: new TextDecoder() };
  let shown = 0;

  const write = (text, stream) => {
    if (!text) return;
    const bottom = output.scrollHeight - output.scrollTop - output.clientHeight < 40;
    const span = document.createElement('span');
    span.className = stream === 'STREAM_STDERR' ? 'stderr' : 'stdout';
    span.textContent = text;
    output.append(span);
    for (shown += text.length; shown > kept && output.children.length > 1; ) {
      shown -= output.firstElementChild.textContent.length;
      output.firstElementChild.remove();
      document.getElementById('cut').hidden = false;
    }
    if (bottom) output.scrollTop = output.scrollHeight;
  };

  const list = (fact) => {
    const item = document.createElement('li');
    const time = document.createElement('time');
    time.textContent = (fact.time || fact.received_at).slice(11, 23);
    const what = { ...fact.data };
    delete what.stdin;
    const detail = document.createElement('span');
    detail.className = 'dim';
    detail.textContent = ' ' + JSON.stringify(what).slice(0, 300);
    item.append(time, fact.name, detail);
    facts.append(item);
  };

  const tail = new EventSource('/v1/executions/' + page.dataset.id + '/tail');
  const take = (event) => {
    const fact = JSON.parse(event.data);
    if (fact.name !== 'OutputChunk') return list(fact);
    const bytes = Uint8Array.from(atob(fact.data.data), (c) => c.charCodeAt(0));
    const decoder = decoders[fact.data.stream];
    if (decoder) write(decoder.decode(bytes, { stream: true }), fact.data.stream);
  };
  for (const name of page.dataset.names.split(' ').concat('Other')) tail.addEventListener(name, take);
  tail.addEventListener('open', () => { state.textContent = 'live'; });
  tail.addEventListener('error', () => { state.textContent = 'connection lost, trying again'; });
  tail.addEventListener('end', () => {
    tail.close();
    state.textContent = 'ended';
    if (page.dataset.sealed !== 'true') location.reload(); // The row has its end now.
  });
}
