//! Orders to workers, and what workers say of themselves.

use lowtide_core::job::Moment;

use super::RedisStore;
use super::scripts;
use super::wire::{Command, Reply};
use crate::accept::fits;
use crate::{
    Acknowledgement, Command as Given, CommandId, Heartbeat, Order, Result, StoreError, WorkerId,
    WorkerStatus,
};

impl RedisStore {
    pub(super) fn give(
        &self,
        (worker, order): (&WorkerId, &Order),
        expires: Moment,
        now: Moment,
    ) -> Result<CommandId> {
        let order = serde_json::to_string(order).expect("an order has JSON");
        let command = scripts::SEND
            .call(&self.prefix)
            .arg(worker.as_str())
            .arg(order)
            .number(expires.0)
            .number(now.0)
            .arg(&self.sender);
        let reply = self.writer.one(command, true)?.list();
        self.mark.changed();
        let number = reply.first().and_then(Reply::some_number);
        number
            .map(CommandId)
            .ok_or_else(|| self.strange("an order's number"))
    }

    pub(super) fn open_orders(&self, worker: &WorkerId, now: Moment) -> Result<Vec<Given>> {
        let command = scripts::ORDERS
            .call(&self.prefix)
            .arg(worker.as_str())
            .number(now.0);
        let open = self.reader.one(command, false)?.list();
        open.into_iter()
            .map(|order| self.given(&order.list()))
            .collect()
    }

    pub(super) fn order(&self, command: CommandId) -> Result<Given> {
        let fields = Command::new("HMGET")
            .arg(format!("{}order:{command}", self.prefix))
            .arg("worker")
            .arg("order")
            .arg("sent")
            .arg("expires")
            .arg("answer");
        let fields = self.reader.one(fields, false)?.list();
        if fields.first().and_then(Reply::some).is_none() {
            return Err(StoreError::NoCommand { command });
        }
        let mut all = vec![Reply::Text(command.to_string().into_bytes())];
        all.extend(fields);
        self.given(&all)
    }

    fn given(&self, fields: &[Reply]) -> Result<Given> {
        let strange = || self.strange("an order");
        let [id, worker, order, sent, expires, answer] = fields else {
            return Err(strange());
        };
        let acknowledged: Option<Acknowledgement> = match answer.some() {
            Some(answer) => Some(serde_json::from_str(&answer).map_err(|_| strange())?),
            None => None,
        };
        Ok(Given {
            id: CommandId(id.number()),
            worker: worker.text().parse().map_err(|_| strange())?,
            order: serde_json::from_str(&order.text()).map_err(|_| strange())?,
            sent: Moment(sent.number()),
            expires: Moment(expires.number()),
            acknowledged,
        })
    }

    pub(super) fn answer(
        &self,
        (worker, command): (&WorkerId, CommandId),
        answer: &Acknowledgement,
    ) -> Result<()> {
        let answer = serde_json::to_string(answer).expect("an answer has JSON");
        let call = scripts::ACKNOWLEDGE
            .call(&self.prefix)
            .arg(worker.as_str())
            .number(command.0)
            .arg(answer)
            .arg(&self.sender);
        let reply = self.writer.one(call, false)?.list();
        if reply.first().map(Reply::text).as_deref() != Some("ok") {
            return Err(StoreError::NoCommand { command });
        }
        self.mark.changed();
        Ok(())
    }

    pub(super) fn beat(&self, heartbeat: &Heartbeat, now: Moment) -> Result<()> {
        let json_max = self.policy.json_max;
        fits("status", heartbeat.status.len(), json_max)?;
        let cards = heartbeat.cards.as_deref();
        fits("cards", cards.unwrap_or_default().len(), json_max)?;
        let mut command = scripts::HEARTBEAT
            .call(&self.prefix)
            .arg(heartbeat.worker.as_str())
            .number(now.0)
            .number((now + heartbeat.ttl).0)
            .arg(&heartbeat.status)
            .arg(&self.sender);
        if let Some(cards) = cards {
            command = command.arg(cards);
        }
        self.writer.one(command, false)?;
        self.mark.changed();
        Ok(())
    }

    pub(super) fn forget_one(&self, worker: &WorkerId) -> Result<()> {
        let command = scripts::FORGET
            .call(&self.prefix)
            .arg(worker.as_str())
            .arg(&self.sender);
        self.writer.one(command, false)?;
        self.mark.changed();
        Ok(())
    }

    pub(super) fn all_workers(&self) -> Result<Vec<WorkerStatus>> {
        let known = self
            .reader
            .one(scripts::WORKERS.call(&self.prefix), false)?
            .list();
        let status = |fields: Reply| {
            let fields = fields.list();
            let [worker, first, seen, expires, cards, status] = &fields[..] else {
                return Err(self.strange("a worker"));
            };
            Ok(WorkerStatus {
                worker: worker
                    .text()
                    .parse()
                    .map_err(|_| self.strange("a worker's name"))?,
                first_seen: Moment(first.number()),
                seen: Moment(seen.number()),
                expires: Moment(expires.number()),
                cards: cards.some(),
                status: status.text(),
            })
        };
        known.into_iter().map(status).collect()
    }
}
