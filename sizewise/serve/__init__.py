"""HTTP: a manager of loaded models, the wire formats that teams already call, and a web page."""
