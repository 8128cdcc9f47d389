// A live result by WebSocket.
const place = document.getElementById("live");
const socket = new WebSocket(`${location.origin.replace("http", "ws")}/celeriac/${place.dataset.key}`);
socket.onmessage = (event) => {
  const status = JSON.parse(event.data);
  place.textContent = status.ready ? JSON.stringify(status.result ?? status.error, null, 2) : `${status.text} …`;
};
socket.onerror = () => {
  place.textContent = "This server has no WebSockets; uvicorn has.";
};
