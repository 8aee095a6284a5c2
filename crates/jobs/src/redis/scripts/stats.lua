-- Numbers about the queue. ARGV: the last minute, how many minutes.
local meta = redis.call('HMGET', Q .. 'meta', 'held', 'artifacts', 'artifact_bytes', 'events')
local oldest = {}
for class = 0, 2 do oldest[class + 1] = redis.call('ZRANGE', Q .. 'since:' .. int(class), 0, 0, 'WITHSCORES')[2] or '' end
local running = redis.call('ZRANGE', Q .. 'running', 0, 0, 'WITHSCORES')[2] or ''
local minutes = {}
for minute = tonumber(ARGV[1]) - tonumber(ARGV[2]) + 1, tonumber(ARGV[1]) do
    local numbers = redis.call('HGETALL', Q .. 'minute:' .. int(minute))
    if #numbers > 0 then minutes[#minutes + 1] = { int(minute), numbers } end
end
return {
    meta[1] or '0', meta[2] or '0', meta[3] or '0', meta[4] or '0',
    redis.call('HGETALL', Q .. 'tally'), oldest, running, minutes,
}
