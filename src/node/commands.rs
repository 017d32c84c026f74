//! From the control thread's hand-over to the commands' topic.
