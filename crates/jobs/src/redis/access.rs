//! Keys, and what became of the jobs of their names.

use std::collections::HashMap;

use super::RedisStore;
use super::wire::{Command, Reply};
use crate::{AccessKey, Result, Usage};

/// States in which jobs wait, then those in which they run.
const OPEN: [u8; 4] = [0, 1, 2, 3];

impl RedisStore {
    pub(super) fn put_key(&self, key: &AccessKey) -> Result<()> {
        let record = serde_json::to_string(key).expect("a key has JSON");
        let count = Command::new("SADD")
            .arg(format!("{}usage", self.prefix))
            .arg(&key.name);
        let keep = Command::new("HSET")
            .arg(format!("{}access_keys", self.prefix))
            .arg(&key.id)
            .arg(record);
        // In this order: a key that is known is counted.
        self.writer.call(vec![count, keep], true)?;
        self.mark.changed();
        Ok(())
    }

    pub(super) fn all_keys(&self) -> Result<Vec<AccessKey>> {
        let command = Command::new("HVALS").arg(format!("{}access_keys", self.prefix));
        let records = self.reader.one(command, false)?.list();
        let read = |record: &Reply| {
            serde_json::from_str(&record.text()).map_err(|_| self.strange("an access key"))
        };
        let mut keys: Vec<AccessKey> = records.iter().map(read).collect::<Result<_>>()?;
        keys.sort_by(|a, b| (a.made, &a.id).cmp(&(b.made, &b.id)));
        Ok(keys)
    }

    pub(super) fn all_usage(&self) -> Result<Vec<Usage>> {
        let command = Command::new("SMEMBERS").arg(format!("{}usage", self.prefix));
        let owners = self.reader.one(command, false)?.list();
        let mut owners: Vec<String> = owners.iter().map(Reply::text).collect();
        owners.sort();
        let mut commands = Vec::with_capacity(owners.len() * (1 + OPEN.len()));
        for owner in &owners {
            commands.push(Command::new("HGETALL").arg(format!("{}usage:{owner}", self.prefix)));
            let count =
                |state| Command::new("ZCARD").arg(format!("{}in:{state}:{owner}", self.prefix));
            commands.extend(OPEN.map(count));
        }
        if commands.is_empty() {
            return Ok(Vec::new());
        }
        let replies = self.reader.call(commands, false)?;
        let read = |(owner, replies): (String, &[Reply])| {
            let fields = replies[0].clone().list();
            let fields: HashMap<String, u64> = fields
                .chunks_exact(2)
                .map(|pair| (pair[0].text(), pair[1].number()))
                .collect();
            let field = |name: &str| fields.get(name).copied().unwrap_or_default();
            Usage {
                submitted: field("submitted"),
                done: field("done"),
                failed: field("failed"),
                cancelled: field("cancelled"),
                artifacts: field("artifacts"),
                worked_ms: field("worked_ms"),
                waiting: replies[1].number() + replies[2].number(),
                running: replies[3].number() + replies[4].number(),
                owner,
            }
        };
        let each = owners.into_iter().zip(replies.chunks_exact(1 + OPEN.len()));
        Ok(each.map(read).collect())
    }
}
