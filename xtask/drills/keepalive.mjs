// An HTTP server that closes idle connections after a while.
//
// keepalive.mjs PORT KEEPALIVE_MS
//
// It prints how long each connection was idle when it closed it: the truth to compare with.
import http from 'node:http';

const server = http.createServer((request, response) => {
  request.resume();
  request.on('end', () => {
    response.on('finish', () => { request.socket.answered = performance.now(); });
    response.end('ok\n');
  });
});
server.keepAliveTimeout = Number(process.argv[3]);
server.on('connection', (socket) => {
  socket.on('timeout', () => {
    if (socket.answered !== undefined) {
      console.log('closed', ((performance.now() - socket.answered) / 1000).toFixed(3));
    }
  });
});
server.listen(Number(process.argv[2]));
