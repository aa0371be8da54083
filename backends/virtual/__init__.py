"""Virtual time: service times instead of engines, one server or a fleet."""
