"""The door: parse, call one library function, render."""
