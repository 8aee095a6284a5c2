-- Notes what a worker says. ARGV: worker, now, expires, status, sender, cards (left out: as before).
local key = Q .. 'worker:' .. ARGV[1]
redis.call('HSETNX', key, 'first', ARGV[2])
redis.call('HSET', key, 'seen', ARGV[2], 'expires', ARGV[3], 'status', ARGV[4])
if ARGV[6] then redis.call('HSET', key, 'cards', ARGV[6]) end
redis.call('ZADD', Q .. 'workers', ARGV[3], ARGV[1])
tell(ARGV[5], 'news')
return { 'ok' }
