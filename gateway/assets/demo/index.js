// The landing page: puts the address of the gateway that served it into the command to copy.

document.getElementById("here").textContent = location.origin;
