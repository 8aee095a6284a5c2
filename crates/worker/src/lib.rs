//! Works: joins the queue, the schedule, the lives of models and the engine on one device.
