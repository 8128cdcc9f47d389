"""Where engines keep schedules: one file each, with the connection and in the transactions of its engine, so that `delay()` enters none of it."""
