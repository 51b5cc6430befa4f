//! The mover against a made-up worker: phases, pace, pauses, and that nobody is begun with twice.
