"""Commands in, events out: the worlds in which the Dispatcher's decisions are carried out."""
