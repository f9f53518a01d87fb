// The landing page: names the gateway that served it in the line to copy.

document.getElementById("here").textContent = location.origin;
