-- Says how an order ended; the first answer counts. ARGV: worker, command, answer, sender.
local key = Q .. 'order:' .. ARGV[2]
if redis.call('HGET', key, 'worker') ~= ARGV[1] then return { 'none' } end
redis.call('HSETNX', key, 'answer', ARGV[3])
tell(ARGV[4], 'news')
return { 'ok' }
